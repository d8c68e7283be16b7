"""Tests on a real GPU: networks against torch, and tables against networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.latency import LatencyTable, build_table, open_runtime, space_kernels
from nas.latency.check import check_table
from nas.latency.worker_process import timers_for
from nas.runtimes.tvm.runtime import CudaRuntime
from tests.latency.example_graphs import GRAPHS
from tests.runtimes.outputs import check_network

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", CudaRuntime.capabilities.dtypes)
@pytest.mark.parametrize("name", GRAPHS)
def test_blocks_compute_what_torch_computes(name: str, dtype: str) -> None:
    check_network(open_runtime("tvm", target="cuda", dtype=dtype), GRAPHS[name]())


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("dtype", CudaRuntime.capabilities.dtypes)
def test_table_is_built_and_checked(dtype: str, tmp_path: Path) -> None:
    space = nas.space.load_space("squeezenet_tiny", image_size=16, classes=5)
    runtime = open_runtime("tvm", target="cuda", dtype=dtype)
    table = LatencyTable.open_or_create(tmp_path, runtime)
    kernels = space_kernels(space, runtime)
    with timers_for(runtime) as timers:
        built = build_table(table, kernels, timers)
    assert built.failed == 0
    rng = np.random.default_rng(0)
    check = check_table(table, [space], runtime, nets=4, rng=rng, references=False)
    assert all(row.measured_us > 0 and row.predicted_us > 0 for row in check.networks)
