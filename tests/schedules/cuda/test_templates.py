"""Every CUDA kernel with every setting of its sweep, run on the CPU, against torch.

What runs is the generated CUDA source (see `cuda_emulator`), so indices, barriers, conditions
and rounding are those that a GPU would see.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nas.kernels.kernel import Kernel
from nas.runtimes.tvm.runtime import CudaRuntime
from nas.schedules.cuda.templates import CudaTemplates
from tests.schedules.cuda.cuda_emulator import EmulatedKernels, cuda_source, require_compiler
from tests.schedules.kernel_reference import KernelCase, sweep
from tests.schedules.kernels import KERNELS

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")

TOLERANCE = {"float32": 1e-5, "float16": 2e-3}
"""Largest error, relative to the largest value.

Sums are in float32 for both types. float16 loses accuracy only where values are rounded to it: when
results are stored (2**-11 of each), and between an expansion and its depthwise convolution.
"""


@pytest.fixture(autouse=True, scope="module")
def _compiler() -> None:
    require_compiler()


def cover_settings(schedules: list[dict]) -> list[dict]:
    """Return a few of the schedules, in which every setting takes each of its values."""
    chosen: list[dict] = []
    covered: set[tuple[str, object]] = set()
    for schedule in schedules:
        if not chosen or not covered.issuperset(schedule.items()):
            chosen.append(schedule)
            covered.update(schedule.items())
    return chosen


@pytest.mark.parametrize(("dtype", "step"), [("float32", 1), ("float16", 2)])
@pytest.mark.parametrize("group", KERNELS)
def test_kernels_compute_what_torch_computes(
    group: str, dtype: str, step: int, tmp_path: Path
) -> None:
    templates = CudaTemplates.for_arch("sm_80", dtype)
    functions, tried = {}, {}
    for text in KERNELS[group][::step]:
        case = KernelCase.random(Kernel.parse(text), dtype)
        for schedule in cover_settings(sweep(templates, case.kernel)):
            name = f"k{len(functions)}"
            functions[name] = templates.function(case.kernel, schedule, name)
            tried[name] = case, schedule
    emulated = EmulatedKernels(functions, templates.target, tmp_path)
    for name, (case, schedule) in tried.items():
        arrays = case.arguments(templates, schedule)
        assert all(each.dtype == dtype for each in arrays)
        emulated.run(name, arrays)
        assert case.error_of(arrays[-1]) < TOLERANCE[dtype], (case.kernel, schedule)


def source_of_one_of_each_kind(arch: str, dtype: str) -> str:
    """Return the CUDA source of the first schedule of each kernel."""
    templates = CudaTemplates.for_arch(arch, dtype)
    kernels = [Kernel.parse(text) for text, *_ in KERNELS.values()]
    functions = {
        f"k{i}": templates.function(kernel, templates.candidates(kernel)[0], f"k{i}")
        for i, kernel in enumerate(kernels)
    }
    return cuda_source(functions, templates.target)


@pytest.mark.parametrize("dtype", CudaRuntime.capabilities.dtypes)
def test_all_gpus_get_the_same_source(dtype: str) -> None:
    """What is emulated for one architecture therefore holds for all of them."""
    first, *others = (source_of_one_of_each_kind(arch, dtype) for arch in ARCHITECTURES)
    assert all(other == first for other in others)
    assert first.count("__launch_bounds__") == 2 * len(KERNELS)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc; g++ compiles the source anyway")
@pytest.mark.parametrize(("dtype", "arch"), [("float32", "sm_90"), ("float16", "sm_75")])
def test_nvcc_keeps_local_arrays_in_registers(dtype: str, arch: str, tmp_path: Path) -> None:
    path = tmp_path / "kernels.cu"
    path.write_text(source_of_one_of_each_kind(arch, dtype))
    options = ["-w", f"-arch={arch}", "-cubin", "--ptxas-options=-v", "-o", "/dev/null"]
    done = subprocess.run(["nvcc", *options, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frames = [line for line in done.stderr.splitlines() if "stack frame" in line]
    assert len(frames) == len(KERNELS)
    assert all(line.split()[0] == "0" and "0 bytes spill stores" in line for line in frames)
