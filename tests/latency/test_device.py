from __future__ import annotations

import pytest

from nas.errors import TableDeviceError
from tests.latency.fake_runtime import device


def test_slug_names_device_and_settings() -> None:
    assert device().slug == "test-cpu-1-2-3.tvm.float32.1t.jsonl"
    assert device(target="cuda 0", threads=4).slug == "test-cpu-1-2-3-cuda-0.tvm.float32.4t.jsonl"


def test_slugs_of_boards_with_many_features_are_short_and_differ() -> None:
    targets = [f"board {'+feature ' * 100}{last}" for last in ("+sve", "+sve2")]
    slugs = [device(target=target).slug for target in targets]
    assert all(slug.startswith("test-cpu-1-2-3-board-feature-") for slug in slugs)
    assert max(map(len, slugs)) < 150
    assert len({*slugs}) == 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"processor": "Other"}, "processor"),
        ({"features": ("avx2",)}, "features"),
        ({"versions": {"apache-tvm": "0.28"}}, "versions"),
        ({"threads": 2}, "threads is 2, not 1"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_require_match_refuses_other_device(change: dict, word: str) -> None:
    with pytest.raises(TableDeviceError, match=word):
        device().require_match(device(**change), "table.jsonl")
