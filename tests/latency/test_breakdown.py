"""Where the time of a network goes: what each launch adds, and that the parts add up."""

from collections import Counter
from pathlib import Path

import pytest

from nas.graph import Graph
from nas.latency import LatencyTable, build_table, open_runtime
from nas.latency.breakdown import Breakdown, break_down
from nas.latency.cache_model import WEIGHT_PARTS
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import CudaRuntime, TvmRuntime
from nas.space import load_space
from tests.capabilities import change
from tests.latency.fake_runtime import FakeRuntime, latency_us
from tests.latency.small_table import GRAPH, correction

SPACE = load_space("mobilenet_tiny", image_size=8, channels=1)


def total_us(parts: Breakdown) -> float:
    launches = sum(each.warm_us + each.cold_us + each.launch_us for each in parts.launches)
    return parts.start_us + launches + parts.correction_us


def test_parts_are_kernels_launches_and_the_start(table: LatencyTable) -> None:
    parts = break_down(table, GRAPH)
    assert [each.warm_us for each in parts.launches] == [
        latency_us(kernel) for kernel in parts.prediction.kernels
    ]
    assert [each.launch_us for each in parts.launches] == pytest.approx([0.5] * 3)
    assert [each.cold_us for each in parts.launches] == [0.0] * 3
    assert (parts.start_us, parts.correction_us) == (2.0, 0.0)
    assert total_us(parts) == pytest.approx(parts.prediction.latency_us)


def test_correction_is_a_part_of_its_own(table: LatencyTable) -> None:
    before = break_down(table, GRAPH)
    table.use_correction(correction(0.9, dispatch_factor=0.5))
    parts = break_down(table, GRAPH)
    assert parts.launches == before.launches
    kernels_us = sum(before.prediction.kernels_us)
    assert parts.correction_us == pytest.approx(-0.1 * kernels_us - 0.5 * (2.0 + 3 * 0.5))
    assert total_us(parts) == pytest.approx(parts.prediction.latency_us)


def test_waiting_for_weights_is_shared_by_their_size(
    table: LatencyTable, runtime: FakeRuntime
) -> None:
    batch = 16 * 2**20 // GRAPH.peak_memory_bytes  # halfway between warm and cold caches
    kernels = runtime.kernels(GRAPH, batch)
    build_table(table, kernels, runtime)
    with table.writing():
        for part, us in zip(WEIGHT_PARTS, (30.0, 30.0, 36.0, 44.0, 50.0, 70.0), strict=True):
            table.append(Record.from_timings("dispatch", [Timing((us,))], name=part))
    parts = break_down(table, GRAPH, batch)
    expected_us = [20 / 2**20 * kernel.weight_bytes for kernel in kernels]
    assert [each.cold_us for each in parts.launches] == pytest.approx(expected_us, rel=0.02)
    assert total_us(parts) == pytest.approx(parts.prediction.latency_us)


def test_launch_that_a_gpu_hides_behind_a_kernel_costs_nothing(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel starts when it is launched and the one before has ended, whichever is later."""
    monkeypatch.setattr(TvmRuntime, "network_us", CudaRuntime.network_us)
    launch_us = round(0.85 * latency_us(table.runtime.kernels(GRAPH)[0]), 1)
    with table.writing():
        table.append(Record.from_timings("dispatch", [Timing((launch_us,))], name="launch"))
    parts = break_down(table, GRAPH)
    launched_us = [parts.start_us + n * launch_us for n in range(3)]
    free_us, waits_us = parts.start_us, []
    for at_us, each in zip(launched_us, parts.launches, strict=True):
        waits_us.append(max(0.0, at_us - free_us))
        free_us = max(free_us, at_us) + each.warm_us
    assert [each.launch_us for each in parts.launches] == pytest.approx(waits_us)
    assert min(waits_us) == 0 < max(waits_us)
    assert total_us(parts) == pytest.approx(parts.prediction.latency_us)


def test_launches_of_a_network_belong_to_its_blocks(tmp_path: Path) -> None:
    runtime, graph = FakeRuntime(), SPACE.largest.graph
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, runtime.kernels(graph), runtime)
    parts = break_down(table, SPACE.largest)
    for number, block in enumerate(graph.segments):
        own = [each.kernel for each in parts.launches if each.block == number]
        assert own == runtime.kernels(block)


@pytest.mark.parametrize(("name", "dtype"), [("onnxruntime", "float32"), ("litert", "int8")])
@pytest.mark.parametrize("space", ["mobilenet_v3_small", "shufflenet", "squeezenet"])
def test_blocks_of_runtimes_that_convert_tensors_between_blocks(
    space: str, name: str, dtype: str
) -> None:
    """What every block must launch in any network is counted for it, in the order of blocks."""
    runtime = open_runtime(name, dtype=dtype)
    graph = load_space(space, image_size=64).largest.graph
    kernels, blocks = runtime.kernels(graph), runtime.kernel_blocks(graph)
    assert blocks is not None
    assert len(blocks) == len(kernels)
    assert blocks == sorted(blocks)
    assert set(blocks) == set(range(len(graph.segments)))
    convolutions = Counter(
        number
        for kernel, number in zip(kernels, blocks, strict=True)
        if kernel.kind in ("conv2d", "linear")
    )
    known = set(runtime.block_kernels(graph.segments))
    for number, segment in enumerate(graph.segments):
        assert convolutions[number] == sum(op.kind in ("conv", "linear") for op in segment.ops)
        own = {k for k, n in zip(kernels, blocks, strict=True) if n == number}
        assert own <= known


def test_runtime_that_does_not_know_the_blocks_says_so(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch, type(table.runtime), has_local_kernels=False)
    assert {each.block for each in break_down(table, Graph(GRAPH.ops)).launches} == {None}
