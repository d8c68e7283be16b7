"""`CudaDevice`: this machine's first NVIDIA GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
from tvm.support import nvcc

from nas.errors import DeviceError
from nas.latency import timing
from nas.machine import this_machine
from nas.runtimes.tvm.cuda import compiler
from nas.runtimes.tvm.device import Device
from nas.schedules.cuda.templates import CudaTemplates

_COMPILE_MODE = "TVM_CUDA_COMPILE_MODE"
"""Environment variable in which TVM finds whether to compile with `nvrtc` or `nvcc`."""

_PCI_ADDRESS_BYTES = 16
"""Room for the address of a GPU, which has 12 characters and a zero."""

_NVIDIA_SMI_SECONDS = 20
"""Longest time that `nvidia-smi` may take."""


def resolve_target(dtype: str) -> tuple[CudaTemplates, CudaDevice]:
    """Return the templates and the device of target `cuda`.

    Args:
        dtype: `float32` or `float16`.

    Raises:
        DeviceError: there is no GPU, or no compiler for it.
    """
    gpu = tvm.cuda()
    if not gpu.exist:
        raise DeviceError(
            "Target 'cuda' needs an NVIDIA GPU, and TVM finds none on this machine.",
            remedy="Use target cpu. If `nvidia-smi` lists a GPU, the folder of "
            "CUDA 13's libcudart.so.13 is missing in LD_LIBRARY_PATH.",
        )
    arch = _architecture(gpu)
    _choose_compiler(arch)
    return CudaTemplates.for_arch(arch, dtype), CudaDevice()


def _architecture(gpu: tvm.runtime.Device) -> str:
    return "sm_" + gpu.compute_version.replace(".", "")


def _choose_compiler(arch: str) -> None:
    """Let TVM compile with NVRTC, which is faster, or else with nvcc.

    Args:
        arch: compute capability of the GPU, such as `sm_90`.

    Raises:
        DeviceError: CUDA's toolkit, which has the headers that both need, is not installed.
    """
    try:
        toolkit = Path(nvcc.find_cuda_path())
    except RuntimeError as error:
        raise DeviceError(
            f"Target 'cuda' needs NVIDIA's CUDA toolkit to compile kernels ({error}).",
            remedy="Install CUDA 13, and put its bin folder on the PATH.",
        ) from error
    has_bindings = importlib.util.find_spec("cuda") and importlib.util.find_spec("cuda.bindings")
    # If nvcc is a script that calls another, the headers are elsewhere; only nvcc finds them then.
    if not has_bindings or not (toolkit / "include" / "cuda_runtime.h").is_file():
        os.environ.setdefault(_COMPILE_MODE, "nvcc")
    if os.environ.get(_COMPILE_MODE) != "nvcc":
        compiler.use_nvrtc(arch, toolkit)


class CudaDevice(Device):
    """This machine's first GPU. See `nas.runtimes.tvm.device.Device`."""

    def __init__(self) -> None:
        super().__init__(tvm.cuda())

    @contextmanager
    def timing_context(self, threads: int) -> Iterator[None]:
        """See `Device.timing_context`. The speed of the host's core is not that of the GPU."""
        with super().timing_context(threads), timing.reading(None):
            yield

    def processor(self) -> tuple[str, tuple[str, ...]]:
        """Return the name of the GPU and its compute capability."""
        return str(self.tvm_device.device_name), ("cuda", _architecture(self.tvm_device))

    def recorded(self) -> Mapping[str, Any]:
        """Return the machine, the sizes of the GPU, its driver and its clocks."""
        gpu = self.tvm_device
        host, _ = this_machine.processor()
        return {
            **this_machine.recorded_facts(),
            "host": host,
            "multiprocessors": gpu.multi_processor_count,
            "gpu_memory_bytes": gpu.total_global_memory,
            "gpu_cache_bytes": gpu.l2_cache_size_bytes,
            "gpu_clock_khz": gpu.max_clock_rate,
            "cuda": gpu.api_version,
            **_driver_settings(),
        }


def _pci_address() -> str | None:
    """Return where CUDA's first GPU is on the PCI bus, such as `0000:1B:00.0`; None if unknown.

    CUDA counts the GPUs of CUDA_VISIBLE_DEVICES in the order of CUDA_DEVICE_ORDER, and `nvidia-smi`
    all GPUs by their addresses, so that their first GPUs may be two.
    """
    device = ctypes.c_int()
    address = ctypes.create_string_buffer(_PCI_ADDRESS_BYTES)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    status = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetPCIBusId(address, _PCI_ADDRESS_BYTES, device)
    )
    return None if status else address.value.decode()


def _driver_settings() -> dict[str, str | None]:
    """Return what `nvidia-smi` reports of CUDA's first GPU; None if it is missing or fails."""
    properties = {
        "driver": "driver_version",
        "power_limit": "power.limit",
        "clock": "clocks.max.sm",
    }
    address = _pci_address()
    if address is None:
        return dict.fromkeys(properties)
    query = ["nvidia-smi", f"--id={address}", f"--query-gpu={','.join(properties.values())}"]
    try:
        completed = subprocess.run(
            [*query, "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=_NVIDIA_SMI_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return dict.fromkeys(properties)
    values: list[str | None] = [*completed.stdout.strip().split(", ")]
    if len(values) != len(properties):
        return dict.fromkeys(properties)
    return dict(zip(properties, values, strict=True))
