"""Every CUDA kernel with every setting of its sweep, run on the CPU, against torch.

What runs is the generated CUDA source (see `cuda_emulator`), so indices, barriers, conditions
and rounding are those that a GPU would see.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from nas.kernels.kernel import Kernel
from nas.runtimes.tvm.runtime import CudaRuntime
from nas.schedules.cuda.templates import CudaTemplates
from tests.schedules.cuda.cuda_emulator import EmulatedKernels, cuda_source, require_compiler
from tests.schedules.kernel_reference import KernelCase, flat

KERNELS = [
    # pointwise: channels that fill no tile, an addition, a slice of the input
    "conv2d 58x5x5 -> 58x5x5 k1 s1 p0 g1 bias relu",
    "conv2d 36x4x4[12:36] -> 20x4x4 k1 s1 p0 g1 bias add:40x4x4[20:40] hard_swish",
    "conv2d 12x5x5 -> 20x5x5 k1 s1 p0 g1 bias hard_swish multiply:40x1x1[20:40] relu6",
    # a stem, padding, stride, neither, grouped, grouped with few or odd numbers of channels
    "conv2d 3x13x12 -> 20x7x6 k3 s2 p1 g1 bias relu6",
    "conv2d 6x6x6 -> 10x6x6 k5 s1 p2 g1",
    "conv2d 3x15x14 -> 20x5x4 k7 s2 p0 g1 bias relu",
    "conv2d 16x7x7 -> 24x4x4 k1 s2 p0 g1",
    "conv2d 24x4x4 -> 72x4x4 k1 s1 p0 g3 bias relu",
    "conv2d 24x3x3 -> 40x3x3 k1 s1 p0 g8 bias hard_swish",
    "conv2d 8x6x6 -> 16x3x3 k3 s2 p1 g8 bias",
    # depthwise, alone and with an expansion
    "conv2d 58x7x9 -> 58x7x9 k3 s1 p1 g58 bias relu",
    "conv2d 40x12x12[20:40] -> 20x6x6 k5 s2 p2 g20 bias multiply:40x1x1[20:40] add hard_swish",
    "conv2d 33x3x3 -> 33x3x3 k7 s1 p3 g33 bias relu6",
    "conv2d 20x10x9 -> 20x4x4 k3 s2 p0 g20",
    "conv2d 12x9x9 expanded bias relu6 -> 36x9x9 k3 s1 p1 g36 bias relu6",
    "conv2d 10x9x7[2:10] expanded bias hard_swish -> 34x5x4 k5 s2 p2 g34 bias",
    "conv2d 5x3x3 expanded -> 7x3x3 k7 s1 p3 g7 add",
    # last windows that exceed the padded image
    "max_pool 70x13x13 -> 70x7x7 k3 s2 p1 g1",
    "max_pool 20x7x8 -> 20x3x3 k3 s3 p0 g1",
    "max_pool 38x4x4 -> 38x2x2 k3 s2 p0 g1 hard_sigmoid",
    "avg_pool 20x1x1 -> 20x1x1 k3 s2 p1 g1",
    "avg_pool 33x12x11 -> 33x4x3 k3 s3 p0 g1 relu",
    "avg_pool 20x14x13 -> 20x7x6 k3 s2 p0 g1",
    # a matrix times a vector
    "linear 64x1x1 -> 40x1x1 bias",
    "linear 33x1x1 -> 11x1x1 bias hard_swish",
    "conv2d 72x1x1 -> 24x1x1 k1 s1 p0 g1 bias relu",
    "conv2d 300x1x1[44:300] -> 58x1x1 k1 s1 p0 g1 bias hard_sigmoid",
    # global pooling
    "global_pool 150x3x3 -> 150x1x1",
    "global_pool 35x7x7 -> 35x1x1 relu",
    "global_pool 40x5x4[8:40] -> 32x1x1",
    # data movement
    "concat 116x5x5[0:58] 58x5x5 -> 116x5x5 shuffle2",
    "concat 14x5x5 40x5x5[13:27] 40x5x5[26:40] -> 42x5x5 shuffle2",
    "concat 21x4x4 17x4x4 -> 38x4x4 add",
    "concat 16x4x4 24x4x4 8x4x4 -> 48x4x4 relu",
    "concat 10x5x5 10x5x5 -> 20x5x5 multiply",
    "copy 36x6x6 -> 36x6x6 shuffle3",
    "copy 40x5x5[13:27] -> 14x5x5 add:40x5x5[26:40]",
    "copy 24x7x7 -> 24x7x7 multiply",
    "copy 40x1x1[10:20] -> 10x1x1 hard_swish",
]

ONE_OF_EACH_KIND = [
    "conv2d 116x14x14 -> 116x14x14 k1 s1 p0 g1 bias relu",
    "conv2d 3x32x32 -> 24x16x16 k3 s2 p1 g1 bias relu6",
    "conv2d 58x14x14 -> 58x14x14 k3 s1 p1 g58 bias",
    "conv2d 24x28x28 expanded bias relu6 -> 144x14x14 k5 s2 p2 g144 bias relu6",
    "max_pool 64x28x28 -> 64x14x14 k3 s2 p1 g1",
    "global_pool 960x7x7 -> 960x1x1",
    "linear 1280x1x1 -> 1000x1x1 bias",
    "concat 116x14x14[0:58] 58x14x14 -> 116x14x14 shuffle2",
]

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")

TOLERANCE = {"float32": 1e-5, "float16": 2e-3}
"""Largest error, relative to the largest value.

Sums are in float32 for both types. float16 loses accuracy only where values are rounded to it: when
results are stored (2**-11 of each), and between an expansion and its depthwise convolution.
"""


@pytest.fixture(autouse=True, scope="module")
def _compiler() -> None:
    require_compiler()


def sweep(templates: CudaTemplates, kernel: Kernel) -> list[dict]:
    """Return every schedule that timing a kernel can try, once each."""
    first = templates.candidates(kernel)
    refined = [more for each in first for more in templates.refinements(kernel, each)]
    schedules = [*first, *refined]
    return [each for i, each in enumerate(schedules) if each not in schedules[:i]]


def cover_settings(schedules: list[dict]) -> list[dict]:
    """Return a few of the schedules, in which every setting takes each of its values."""
    chosen: list[dict] = []
    covered: set[tuple[str, object]] = set()
    for schedule in schedules:
        if not chosen or not covered.issuperset(schedule.items()):
            chosen.append(schedule)
            covered.update(schedule.items())
    return chosen


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        *((text, "float32") for text in KERNELS),
        *((text, "float16") for text in KERNELS[::4]),
        *(
            pytest.param(text, "float16", marks=pytest.mark.slow)
            for at, text in enumerate(KERNELS)
            if at % 4
        ),
    ],
)
def test_kernels_compute_what_torch_computes(text: str, dtype: str, tmp_path: Path) -> None:
    kernel = Kernel.parse(text)
    templates = CudaTemplates.for_arch("sm_80", dtype)
    case = KernelCase.random(kernel, dtype)
    schedules = {f"k{i}": s for i, s in enumerate(cover_settings(sweep(templates, kernel)))}
    functions = {name: templates.function(kernel, s, name) for name, s in schedules.items()}
    emulated = EmulatedKernels(functions, templates.target, tmp_path)
    expected = flat(case.expected())
    split = len(kernel.inputs)
    for name, schedule in schedules.items():
        constants = templates.pack(kernel, schedule, case.weight, case.bias, case.expansion)
        assert all(each.dtype == dtype for each in constants)
        tensors = [flat(each, dtype) for each in case.tensors]
        output = np.empty(expected.size, dtype)
        arrays = [*tensors[:split], *constants, *tensors[split:], output]
        names = [parameter.name for parameter in functions[name].params]
        emulated.run(name, dict(zip(names, arrays, strict=True)))
        error = np.abs(output.astype(np.float32) - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE[dtype], schedule


def source_of_one_of_each_kind(arch: str, dtype: str) -> str:
    """Return the CUDA source of the first schedule of each kernel."""
    templates = CudaTemplates.for_arch(arch, dtype)
    kernels = [Kernel.parse(text) for text in ONE_OF_EACH_KIND]
    functions = {
        f"k{i}": templates.function(kernel, templates.candidates(kernel)[0], f"k{i}")
        for i, kernel in enumerate(kernels)
    }
    return cuda_source(functions, templates.target)


@pytest.mark.parametrize("dtype", CudaRuntime.dtypes)
def test_all_gpus_get_the_same_source(dtype: str) -> None:
    """What is emulated for one architecture therefore holds for all of them."""
    first, *others = (source_of_one_of_each_kind(arch, dtype) for arch in ARCHITECTURES)
    assert all(other == first for other in others)
    assert first.count("__launch_bounds__") == 2 * len(ONE_OF_EACH_KIND)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc; g++ compiles the source anyway")
@pytest.mark.parametrize(("dtype", "arch"), [("float32", "sm_90"), ("float16", "sm_75")])
def test_nvcc_keeps_local_arrays_in_registers(dtype: str, arch: str, tmp_path: Path) -> None:
    path = tmp_path / "kernels.cu"
    path.write_text(source_of_one_of_each_kind(arch, dtype))
    options = ["-w", f"-arch={arch}", "-cubin", "--ptxas-options=-v", "-o", "/dev/null"]
    done = subprocess.run(["nvcc", *options, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frames = [line for line in done.stderr.splitlines() if "stack frame" in line]
    assert len(frames) == len(ONE_OF_EACH_KIND)
    assert all(line.split()[0] == "0" and "0 bytes spill stores" in line for line in frames)
