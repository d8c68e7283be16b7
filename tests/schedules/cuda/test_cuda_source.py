"""What the emulation itself finds wrong, and that all GPUs get the same source."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tvm import tirx

from nas.latency.kernel import Kernel
from nas.runtimes.tvm.runtime import CudaRuntime
from nas.schedules.cuda import grid
from nas.schedules.cuda.grid import Grid, Tensor
from nas.schedules.cuda.templates import CudaTemplates
from tests.schedules.cuda.cuda_emulated import Emulated, source_of

ARCHITECTURES = ("sm_75", "sm_80", "sm_90")

KERNELS = [
    "conv2d 116x14x14 -> 116x14x14 k1 s1 p0 g1 bias relu",
    "conv2d 3x32x32 -> 24x16x16 k3 s2 p1 g1 bias relu6",
    "conv2d 58x14x14 -> 58x14x14 k3 s1 p1 g58 bias",
    "conv2d 24x28x28 expanded bias relu6 -> 144x14x14 k5 s2 p2 g144 bias relu6",
    "max_pool 64x28x28 -> 64x14x14 k3 s2 p1 g1",
    "global_pool 960x7x7 -> 960x1x1",
    "linear 1280x1x1 -> 1000x1x1 bias",
    "concat 116x14x14[0:58] 58x14x14 -> 116x14x14 shuffle2",
]


def sources(dtype: str) -> list[str]:
    """Of the first schedule of each kernel, an architecture each."""
    found = []
    for arch in ARCHITECTURES:
        templates = CudaTemplates.for_arch(arch, dtype)
        kernels = [Kernel.parse(text) for text in KERNELS]
        functions = {
            f"k{i}": templates.function(kernel, templates.candidates(kernel)[0], f"k{i}")
            for i, kernel in enumerate(kernels)
        }
        found.append(source_of(functions, templates.target))
    return found


@pytest.mark.parametrize("dtype", CudaRuntime.dtypes)
def test_all_gpus_get_the_same_source(dtype: str) -> None:
    """So what is emulated for one holds for all of them."""
    first, *others = sources(dtype)
    assert all(other == first for other in others)
    assert first.count("__launch_bounds__") == 2 * len(KERNELS)


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc; g++ compiles the source anyway")
@pytest.mark.parametrize(("dtype", "arch"), [("float32", "sm_90"), ("float16", "sm_75")])
def test_kernels_stay_in_registers(dtype: str, arch: str, tmp_path: Path) -> None:
    """NVIDIA's own compiler accepts the source, and keeps local arrays out of memory."""
    path = tmp_path / "kernels.cu"
    path.write_text(sources(dtype)[ARCHITECTURES.index(arch)])
    options = ["-w", f"-arch={arch}", "-cubin", "--ptxas-options=-v", "-o", "/dev/null"]
    done = subprocess.run(["nvcc", *options, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frames = [line for line in done.stderr.splitlines() if "stack frame" in line]
    assert len(frames) == len(KERNELS)
    assert all(line.split()[0] == "0" and "0 bytes spill stores" in line for line in frames)


def reversing(*, waits: bool, reach: int = 0) -> tirx.PrimFunc:
    """A block that reverses 64 numbers through shared memory."""
    x, y = Tensor("x0", 64, "float32"), Tensor("y", 64, "float32")
    shared = Tensor("shared_numbers", 64, "float32", "shared")
    launch = Grid((1, 1, 1), (64, 1, 1))
    (thread, _, _) = launch.thread
    body = [shared.allocate(), shared.store(thread, x.load(thread + reach))]
    body += [grid.barrier()] if waits else []
    return grid.function([x, y], launch, [*body, y.store(thread, shared.load(63 - thread))], "k")


def run(function: tirx.PrimFunc, folder: Path) -> np.ndarray:
    target = CudaTemplates.for_arch("sm_80", "float32").target
    arrays = {"x0": np.arange(64, dtype=np.float32), "y": np.empty(64, np.float32)}
    Emulated({"k": function}, target, folder).run("k", arrays)
    return arrays["y"]


def test_the_emulation_runs_a_block(tmp_path: Path) -> None:
    assert run(reversing(waits=True), tmp_path).tolist() == list(range(63, -1, -1))


def test_the_emulation_finds_a_missing_barrier(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="order of its threads"):
        run(reversing(waits=False), tmp_path)


@pytest.mark.parametrize("reach", [4, -4])
def test_the_emulation_finds_reads_outside_a_tensor(reach: int, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="outside its tensors"):
        run(reversing(waits=True, reach=reach), tmp_path)


def test_the_emulation_finds_threads_that_part_at_a_barrier(tmp_path: Path) -> None:
    x, y = Tensor("x0", 64, "float32"), Tensor("y", 64, "float32")
    launch = Grid((1, 1, 1), (64, 1, 1))
    thread = launch.thread[0]
    body = [*grid.when(thread < 32, [grid.barrier()]), y.store(thread, x.load(thread))]
    with pytest.raises(RuntimeError, match="threads 0 and 32 of block 0,0,0 part"):
        run(grid.function([x, y], launch, body, "k"), tmp_path)
