"""The emulation of CUDA kernels finds missing barriers and reads outside of tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tvm import tirx

from nas.schedules.cuda import grid
from nas.schedules.cuda.grid import Grid
from nas.schedules.cuda.templates import CudaTemplates
from nas.schedules.tir import Buffer, run_if
from tests.schedules.cuda.cuda_emulator import EmulatedKernels


def reversing_kernel(*, has_barrier: bool, read_offset: int = 0) -> tirx.PrimFunc:
    """Return a kernel whose one block reverses 64 numbers through shared memory.

    Args:
        has_barrier: whether threads wait before they read what others wrote.
        read_offset: number of elements by which reads of the input are wrong.
    """
    x, y = Buffer("x0", 64), Buffer("y", 64)
    shared = Buffer("shared_numbers", 64, scope="shared")
    launch = Grid((1, 1, 1), (64, 1, 1))
    (thread, _, _) = launch.thread
    body = [shared.allocate(), shared.store(thread, x.load(thread + read_offset))]
    body += [grid.barrier()] if has_barrier else []
    return grid.function([x, y], launch, [*body, y.store(thread, shared.load(63 - thread))], "k")


def run(function: tirx.PrimFunc, folder: Path) -> np.ndarray:
    target = CudaTemplates.for_arch("sm_80", "float32").target
    output = np.empty(64, np.float32)
    arrays = [np.arange(64, dtype=np.float32), output]
    EmulatedKernels({"k": function}, target, folder).run("k", arrays)
    return output


def test_emulation_runs_a_block(tmp_path: Path) -> None:
    assert run(reversing_kernel(has_barrier=True), tmp_path).tolist() == list(range(63, -1, -1))


def test_emulation_finds_a_missing_barrier(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="order of its threads"):
        run(reversing_kernel(has_barrier=False), tmp_path)


@pytest.mark.parametrize("read_offset", [4, -4])
def test_emulation_finds_reads_outside_a_tensor(read_offset: int, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="outside its tensors"):
        run(reversing_kernel(has_barrier=True, read_offset=read_offset), tmp_path)


def test_emulation_finds_a_barrier_that_some_threads_skip(tmp_path: Path) -> None:
    x, y = Buffer("x0", 64), Buffer("y", 64)
    launch = Grid((1, 1, 1), (64, 1, 1))
    thread = launch.thread[0]
    body = [*run_if(thread < 32, [grid.barrier()]), y.store(thread, x.load(thread))]
    with pytest.raises(RuntimeError, match="threads 0 and 32 of block 0,0,0 diverge"):
        run(grid.function([x, y], launch, body, "k"), tmp_path)
