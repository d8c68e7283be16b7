from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from nas.errors import DeviceError, RequestError
from nas.latency import LatencyTable, open_runtime
from nas.latency.installed_runtimes import configured_runtime
from nas.runtimes.tvm.kit.address import EXAMPLE
from nas.runtimes.tvm.kit.runtime import KitRuntime

OTHER_ORDER = "kit:pixel-6?cpu=cortex-a76&triple=aarch64-linux-gnu"


def test_a_target_with_a_kit_opens_without_its_device() -> None:
    runtime = open_runtime("tvm", target=OTHER_ORDER)
    assert isinstance(runtime, KitRuntime)
    assert runtime.is_remote
    assert runtime.fingerprint.target == EXAMPLE
    assert runtime.fingerprint.processor == "pixel-6 (cortex-a76)"
    assert pickle.loads(pickle.dumps(runtime)).fingerprint == runtime.fingerprint


def test_nothing_is_timed_without_the_device() -> None:
    runtime = open_runtime("tvm", target=EXAMPLE)
    for use in (lambda: runtime.timer, lambda: runtime.compile(None, {}), runtime.timing_context):
        with pytest.raises(DeviceError, match=r"pixel-6\?.* a kit times it.*nas kit table"):
            use()
    runtime.release()


@pytest.mark.parametrize(
    ("target", "settings", "reason"),
    [
        (EXAMPLE, {"threads": 2}, "has at most 1"),
        (EXAMPLE, {"dtype": "float16"}, "no dtype 'float16'"),
        (EXAMPLE.replace("cortex-a76", "cortex-a67"), {}, "no aarch64 processor 'cortex-a67'"),
        (EXAMPLE.replace("aarch64", "aarch46"), {}, "architecture 'aarch46'"),
        ("kit:pixel-6", {}, "has no triple"),
    ],
)
def test_wrong_settings_are_refused(target: str, settings: dict, reason: str) -> None:
    with pytest.raises(RequestError) as caught:
        open_runtime("tvm", target=target, **settings)
    assert reason in caught.value.message


def test_a_table_belongs_to_the_name_of_the_device(tmp_path: Path) -> None:
    runtime = configured_runtime("tvm", target=OTHER_ORDER)
    assert LatencyTable.find(tmp_path, runtime) is None
    table = LatencyTable.open_or_create(tmp_path, runtime)
    assert table.path.name.startswith("pixel-6-cortex-a76-kit-pixel-6-")
    assert LatencyTable.open(table.path).runtime.at_address(EXAMPLE, OTHER_ORDER) == EXAMPLE
    with pytest.raises(RequestError, match="device of the table is 'kit:pixel-6"):
        table.runtime.at_address(EXAMPLE, EXAMPLE.replace("pixel-6", "pixel-7"))
    table_there = LatencyTable.find(tmp_path, configured_runtime("tvm", target=EXAMPLE))
    assert table_there is not None
    assert table_there.path == table.path
    other = configured_runtime("tvm", target=EXAMPLE.replace("pixel-6", "pixel-7"))
    assert LatencyTable.find(tmp_path, other) is None
