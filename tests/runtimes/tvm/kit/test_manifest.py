"""`kit.json`: what a kit times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nas.errors import RequestError
from nas.files.documents import to_json
from nas.runtimes.tvm.kit.manifest import MANIFEST, Item, Manifest

TARGET = "kit:router?triple=riscv64-linux-gnu&cpu=sifive-u74"
ITEMS = (
    Item(id=0, part="kernel", name="copy 72x14x14 -> 72x14x14", schedule={"channels": 4}),
    Item(id=1, part="dispatch", name="few"),
    Item(id=2, part="kernel", name="linear 4x1x1 -> 2x1x1", error="no tiles fit"),
)


def _manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {"content": "kernels", "target": TARGET, "items": ITEMS}
    return Manifest.of(**{**fields, "versions": {"kernels": "10"}, **changes})  # type: ignore[arg-type]


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "kit.json"
    path.write_text(to_json(_manifest(spaces=["mobilenet 32px"])), encoding="utf-8")
    assert MANIFEST.read(path) == _manifest(spaces=["mobilenet 32px"])
    assert json.loads(path.read_text())["schema"] == 2


@pytest.mark.parametrize(
    "changes",
    [{"target": f"{TARGET}&features=+v"}, {"items": ITEMS[:2]}, {"batch": 4}, {"programs": ["k"]}],
)
def test_the_digest_follows_from_every_field(changes: dict[str, object]) -> None:
    assert _manifest(**changes).kit != _manifest().kit
    assert _manifest().kit == _manifest().kit


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kit.json"
    path.write_text(to_json(_manifest()).replace('"channels": 4', '"channels": 8'))
    with pytest.raises(RequestError, match="changed after the kit was made"):
        MANIFEST.read(path)


def test_items_have_their_place_as_number() -> None:
    with pytest.raises(ValueError, match="the numbers 0, 1, 2"):
        _manifest(items=ITEMS[1:])
