from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nas.space
from nas.errors import MissingKernelError, TableError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table
from nas.latency.cache_model import WEIGHT_PARTS
from nas.latency.record import Record
from nas.latency.timing import Timing
from tests.latency.fake_runtime import FakeRuntime, latency_us
from tests.latency.small_table import FIRST, GRAPH, SECOND, edit


def test_prediction_adds_kernels_launches_and_one_invocation(table: LatencyTable) -> None:
    prediction = table.predict(GRAPH)
    kernels = [
        "conv2d 24x9x9 -> 72x9x9 k1 s1 p0 g1 bias relu6",
        "conv2d 72x9x9 -> 72x9x9 k3 s1 p1 g72 bias relu6",
        "conv2d 72x9x9 -> 24x9x9 k1 s1 p0 g1 bias add",
    ]
    assert [kernel.text for kernel in prediction.kernels] == kernels
    total = sum(latency_us(Kernel.parse(text)) for text in kernels)
    assert prediction.latency_us == pytest.approx(total + 3 * 0.5 + 2.0)
    assert prediction.dispatch_us == pytest.approx(3.5)
    assert prediction.dispatch_share == pytest.approx(3.5 / (total + 3.5))
    assert prediction.launches == 3
    assert prediction.uncertain_launches == 0
    assert not prediction.is_corrected
    assert LatencyTable.open(table.path).predict(GRAPH.folded) == prediction
    shares = [share for _, _, share in prediction.by_kernel()]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(total)


def test_table_holds_several_batch_sizes(table: LatencyTable, runtime: FakeRuntime) -> None:
    before = table.predict(GRAPH)
    with pytest.raises(MissingKernelError, match=r"conv2d batch4 24x9x9 -> 72x9x9") as missing:
        table.predict(GRAPH, 4)
    assert "nas table build --batch 4 --space" in missing.value.remedy
    built = build_table(table, runtime.kernels(GRAPH, 4), runtime)
    assert (built.ok, len(table)) == (3, 6)
    assert table.predict(GRAPH) == before
    for reader in (table, LatencyTable.open(table.path)):
        four = reader.predict(GRAPH, 4)
        assert (four.batch, before.batch) == (4, 1)
        assert list(four.kernels) == runtime.kernels(GRAPH, 4)
        assert four.latency_us == pytest.approx(sum(map(latency_us, four.kernels)) + 3.5)
        assert four.latency_us > 3.9 * (before.latency_us - 3.5), "of all images together"


def test_prediction_counts_estimates_and_names_their_methods(table: LatencyTable) -> None:
    edit(table, SECOND, basis="estimated: by a cycle model")
    one = LatencyTable.open(table.path).predict(GRAPH)
    assert (one.basis, one.estimated_launches) == ("estimated: by a cycle model", 1)
    edit(table, FIRST, basis="estimated: by a simulator")
    edit(table, SECOND + 1, basis="estimated: by a cycle model")
    edit(table, 2, basis="estimated: from a data sheet")
    all_three = LatencyTable.open(table.path).predict(GRAPH)
    assert all_three.estimated_launches == 3
    named = all_three.basis.removeprefix("estimated: ").split("; ")
    assert sorted(named) == ["by a cycle model", "by a simulator", "from a data sheet"]
    assert (table.predict(GRAPH).basis, table.predict(GRAPH).estimated_launches) == ("measured", 0)
    edit(table, SECOND, basis="measured")
    edit(table, 2, basis="measured")
    two = LatencyTable.open(table.path).predict(GRAPH)
    assert (two.basis, two.estimated_launches) == ("estimated: by a simulator; by a cycle model", 2)


@pytest.mark.parametrize("tile", ["4", True, 0])
def test_predict_refuses_invalid_schedule(table: LatencyTable, tile: Any) -> None:
    edit(table, SECOND, schedule={"winograd": tile})
    with pytest.raises(TableError, match=f"line {SECOND}: its schedule: winograd is"):
        LatencyTable.open(table.path).predict(GRAPH)


def test_large_network_waits_for_its_weights(table: LatencyTable, runtime: FakeRuntime) -> None:
    """Halfway between warm and cold, a MiB of weights costs half of what it costs in no cache."""
    with table.writing():
        for part, us in zip(WEIGHT_PARTS, (30.0, 30.0, 36.0, 44.0, 50.0, 70.0), strict=True):
            table.append(Record.from_timings("dispatch", [Timing((us,))], name=part))
    kernels = runtime.kernels(GRAPH)
    alone_us = sum(map(latency_us, kernels)) + 3 * 0.5 + 2.0
    assert table.predict(GRAPH).latency_us == pytest.approx(alone_us), "all weights are warm"
    large = 16 * 2**20 // GRAPH.peak_memory_bytes
    batched = runtime.kernels(GRAPH, large)
    build_table(table, batched, runtime)
    alone_us = sum(table.latency_us(kernel) for kernel in batched) + 3 * 0.5 + 2.0
    weights_mib = sum(kernel.weight_bytes for kernel in batched) / 2**20
    waiting_us = table.predict(GRAPH, large).latency_us - alone_us
    assert waiting_us == pytest.approx(20 * weights_mib, rel=0.02)


def test_new_record_changes_remembered_prediction(tmp_path: Path, runtime: FakeRuntime) -> None:
    space = nas.space.load_space("mobilenet_tiny", image_size=8)
    graph = space.largest.graph
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, runtime.kernels(graph), runtime)
    before = table.predict(graph)
    assert table.predict(Graph(graph.ops)).latency_us == pytest.approx(before.latency_us)
    kernel = before.kernels[0]
    with table.writing():
        slower = Timing((latency_us(kernel) + 100,) * 10)
        table.append(
            Record.from_timings("kernel", [slower], name=kernel.text, schedule={"tile": 1})
        )
    assert table.predict(graph).latency_us == pytest.approx(before.latency_us + 100)
