"""`Gpu`: the place of CUDA kernels on this machine, and what has to be there for it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tvm
from tvm.support import nvcc

from nas.errors import DeviceError, RequestError
from nas.latency import device
from nas.runtimes.tvm.device import Local
from nas.schedules.cuda.templates import CudaTemplates

_SMI_SECONDS = 20


def resolve(threads: int, dtype: str) -> tuple[CudaTemplates, Gpu]:
    """Templates and place of this machine's first GPU.

    Args:
        threads: 1; a GPU has its own.
        dtype: `float32` or `float16`.

    Raises RequestError for other settings, DeviceError where there is no GPU, or nothing that
    compiles for it.
    """
    if threads != 1:
        raise RequestError(
            f"threads is {threads}, but target 'cuda' uses one, which launches the kernels.",
            remedy="Use 1.",
        )
    gpu = tvm.cuda()
    if not gpu.exist:
        raise DeviceError(
            "Target 'cuda' needs an NVIDIA GPU, and TVM finds none on this machine.",
            remedy="Use --target cpu. If `nvidia-smi` lists a GPU, the folder of "
            "CUDA 13's libcudart.so.13 is missing in LD_LIBRARY_PATH.",
        )
    _choose_compiler()
    return CudaTemplates.for_arch(_arch(gpu), dtype), Gpu()


def _arch(gpu: tvm.runtime.Device) -> str:
    return "sm_" + gpu.compute_version.replace(".", "")


def _choose_compiler() -> None:
    """Lets TVM compile with what is there: NVRTC, which is faster, or nvcc.

    Raises DeviceError without CUDA's toolkit, which has the headers that both need.
    """
    try:
        toolkit = Path(nvcc.find_cuda_path())
    except RuntimeError as error:
        raise DeviceError(
            f"Target 'cuda' needs NVIDIA's CUDA toolkit to compile kernels ({error}).",
            remedy="Install CUDA 13, and put its bin folder on the PATH.",
        ) from error
    has_bindings = importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings")
    # An nvcc that only calls another hides where the headers are, which nvcc itself finds.
    if not has_bindings or not (toolkit / "include" / "cuda_runtime.h").is_file():
        os.environ.setdefault("TVM_CUDA_COMPILE_MODE", "nvcc")


class Gpu(Local):
    """This machine's first GPU. The thread that launches stays on one core."""

    def __init__(self) -> None:
        super().__init__(tvm.cuda())

    def processor(self) -> tuple[str, tuple[str, ...]]:
        """See `Place.processor`: the GPU's name, and its compute capability."""
        return str(self.device.device_name), ("cuda", _arch(self.device))

    def recorded(self) -> Mapping[str, Any]:
        """See `Place.recorded`: the machine, the GPU's sizes, its driver and its clocks."""
        gpu = self.device
        host, _ = device.processor()
        return {
            **device.recorded(),
            "host": host,
            "multiprocessors": gpu.multi_processor_count,
            "gpu_memory_bytes": gpu.total_global_memory,
            "gpu_cache_bytes": gpu.l2_cache_size_bytes,
            "gpu_clock_khz": gpu.max_clock_rate,
            "cuda": gpu.api_version,
            **_told_by_driver(),
        }


def _told_by_driver() -> dict[str, str | None]:
    """What `nvidia-smi` says of the first GPU; None where it is missing or fails."""
    asked = {"driver": "driver_version", "power_limit": "power.limit", "clock": "clocks.max.sm"}
    query = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(asked.values())}"]
    try:
        done = subprocess.run(
            [*query, "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=_SMI_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(asked)
    values: list[str | None] = [*done.stdout.strip().split(", ")]
    if len(values) != len(asked):
        return dict.fromkeys(asked)
    return dict(zip(asked, values, strict=True))
