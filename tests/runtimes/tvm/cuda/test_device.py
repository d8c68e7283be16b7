"""Which GPU `nvidia-smi` is asked about, with a driver and a program that stand in for NVIDIA's."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

pytest.importorskip("tvm")
from nas.runtimes.tvm.cuda import device

GPUS = {"GPU-a": "0000:1B:00.0", "GPU-b": "0000:65:00.0"}
"""Address of each GPU by its UUID."""

PROGRAM = """#!/bin/sh
case "$1" in
  --id=0000:1B:00.0|--id=0) echo "580.1, 300.00 W, 1980 MHz" ;;
  --id=0000:65:00.0) echo "580.1, 700.00 W, 1755 MHz" ;;
  *) exit 6 ;;
esac
"""


class Driver:
    """CUDA's driver: it counts the GPUs that CUDA_VISIBLE_DEVICES names."""

    def __init__(self, name: str) -> None:
        assert name == "libcuda.so.1"
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(GPUS))
        self.addresses = [GPUS[each] for each in visible.split(",") if each]

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return 0 if self.addresses else 100  # CUDA_ERROR_NO_DEVICE

    def cuDeviceGet(self, device: object, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal + 7  # type: ignore[attr-defined]
        return 0

    def cuDeviceGetPCIBusId(  # noqa: N802
        self, address: ctypes.Array[ctypes.c_char], length: int, gpu: ctypes.c_int
    ) -> int:
        address.value = self.addresses[gpu.value - 7].encode()
        assert len(address.value) < length
        return 0


@pytest.fixture(autouse=True)
def _stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), os.pathsep)
    monkeypatch.setattr(ctypes, "CDLL", Driver)


@pytest.mark.parametrize(
    ("visible", "power", "clock"),
    [
        ("GPU-b,GPU-a", "700.00 W", "1755 MHz"),
        ("GPU-b", "700.00 W", "1755 MHz"),
        ("GPU-a", "300.00 W", "1980 MHz"),
    ],
)
def test_settings_are_those_of_the_gpu_that_cuda_counts_first(
    visible: str, power: str, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    settings = device._driver_settings()
    assert settings == {"driver": "580.1", "power_limit": power, "clock": clock}


def test_settings_of_an_unknown_gpu_are_not_those_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unknown = {"driver": None, "power_limit": None, "clock": None}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device._driver_settings() == unknown

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert device._driver_settings() == unknown
