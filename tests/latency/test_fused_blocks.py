"""The kernels of networks from those of their blocks, for a runtime with simple layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nas.errors import MissingKernelError
from nas.graph import Graph, Op
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table, open_runtime, space_kernels
from nas.latency.fused_blocks import FusedBlock, FusedBlocks, Place, entered_by_images
from nas.latency.record import BlockRecord
from nas.space import load_space
from tests.latency.fake_runtime import FakeRuntime


def block(*kinds: str, channels: tuple[int, int] = (8, 8), size: int = 4) -> Graph:
    ops = [Op("input", (), (channels[0], size, size))]
    for kind in kinds:
        shape = (
            (channels[1], 1, 1) if kind in ("global_pool", "linear") else (channels[1], size, size)
        )
        ops.append(Op(kind, (len(ops) - 1,), shape))
    return Graph(tuple(ops))


def kernel(name: str) -> Kernel:
    return Kernel.parse(f"node {name} f32[1,8] -> f32[1,8]")


class Layouts(FusedBlocks):
    """Convolutions work in the preferred layout, shuffles in the plain one, others in either."""

    def __init__(self) -> None:
        super().__init__(self.answer)
        self.questions: list[Place] = []

    def answer(self, graph: Graph, place: Place) -> FusedBlock:
        self.questions.append(place)
        preferred = place.entry == "preferred"
        wants = place.exit == "conv"
        kernels = []
        for op in reversed(graph.ops[1:]):
            wants = {"conv": True, "shuffle": False}.get(op.kind, wants)
        for op in graph.ops[1:]:
            needed = {"conv": True, "shuffle": False}.get(op.kind, preferred)
            if needed != preferred:
                kernels.append(kernel("ToPreferred" if needed else "ToPlain"))
            preferred = needed
            kernels.append(kernel(f"{op.kind}{op.shape[0]}"))
        if place.exit == "end" and preferred:
            kernels.append(kernel("ToPlain"))
        return FusedBlock(tuple(kernels), preferred, wants)


class Network(Graph):
    """A network of blocks."""

    def __init__(self, *blocks: Graph) -> None:
        super().__init__(blocks[0].ops)
        self.blocks = blocks

    @property
    def segments(self) -> tuple[Graph, ...]:
        return self.blocks


STEM, BODY = block("conv", channels=(3, 8)), block("conv", "relu")
SHUFFLE, RELU = block("shuffle"), block("relu")
HEAD = block("global_pool", "linear", channels=(8, 8))


def names(network: Network, layouts: FusedBlocks) -> list[list[str]]:
    parts = layouts.network(network)
    return [[each.node.op for each in part if each.node] for part in parts]


def test_whoever_reads_a_tensor_converts_it() -> None:
    layouts = Layouts()
    assert names(Network(STEM, SHUFFLE, BODY, HEAD), layouts) == [
        ["ToPreferred", "conv8"],
        ["ToPlain", "shuffle8"],
        ["ToPreferred", "conv8", "relu8"],
        ["global_pool8", "linear8", "ToPlain"],
    ]


def test_what_a_block_is_followed_by_is_known_through_blocks_that_work_in_any_layout() -> None:
    layouts = Layouts()
    names(Network(STEM, RELU, BODY, RELU, SHUFFLE, HEAD), layouts)
    exits = {place.digest: place.exit for place in layouts.asked if place.entry == "preferred"}
    assert exits[SHUFFLE.digest] == "pool"
    assert {place.exit for place in layouts.asked if place.digest == RELU.digest} == {
        "conv",
        "shuffle",
    }
    assert {place.exit for place in layouts.asked if place.digest == BODY.digest} == {"shuffle"}


def test_kernels_of_blocks_are_those_of_all_their_networks() -> None:
    blocks = [STEM, BODY, SHUFFLE, RELU, HEAD]
    kernels = set(Layouts().kernels(blocks))
    for middle in ((), (BODY,), (SHUFFLE,), (SHUFFLE, BODY), (BODY, RELU, SHUFFLE, RELU)):
        layouts = Layouts()
        network = Network(STEM, *middle, HEAD)
        assert {each for part in layouts.network(network) for each in part} <= kernels
    # Nothing needs a plain tensor where no block shuffles.
    conversions = {each.node.op for each in Layouts().kernels([STEM, BODY, HEAD]) if each.node}
    assert conversions == {"ToPreferred", "conv8", "relu8", "global_pool8", "linear8", "ToPlain"}


def test_each_block_is_asked_for_once_in_a_place() -> None:
    layouts = Layouts()
    for _ in range(2):
        layouts.network(Network(STEM, BODY, BODY, HEAD))
    assert len(layouts.questions) == len(set(layouts.questions))
    known = dict(layouts.asked)
    again = Layouts()
    again.recall = known.get
    again.network(Network(STEM, BODY, BODY, HEAD))
    assert not again.questions


def test_images_enter_blocks_that_follow_no_other_one() -> None:
    assert entered_by_images([STEM, BODY, HEAD]) == [STEM]
    assert entered_by_images([BODY]) == [BODY]
    assert entered_by_images([BODY, SHUFFLE]) == [BODY, SHUFFLE]


@pytest.mark.slow
def test_a_table_predicts_without_asking_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device of the table is another one, whose runtime cannot be asked here."""
    runtime = open_runtime("onnxruntime")
    space = load_space("mobilenet_tiny", image_size=8)
    table = LatencyTable.open_or_create(tmp_path / "table.jsonl", runtime)
    fake = FakeRuntime(runtime.fingerprint)
    build_table(table, space_kernels(space, runtime), fake, progress=False)
    text = table.path.read_text()
    assert text.count('"record": "block"') == len(runtime.fused_blocks.asked)
    other = tmp_path / "other.jsonl"
    other.write_text(text.replace('"processor": "', '"processor": "Other ', 1))
    table = LatencyTable.open(other)
    latencies = {table.predict(space.sample(seed=seed)).latency_us for seed in range(6)}
    assert len(latencies) > 3
    assert not table.runtime.fused_blocks.asked
    with pytest.raises(MissingKernelError, match="does not know all kernels") as caught:
        table.predict(load_space("mobilenet_tiny", image_size=16).smallest)
    assert "on the device" in caught.value.remedy
    # The block is known, one of its kernels is not.
    name = json.dumps(runtime.kernels(space.smallest.graph)[-1].text)
    other.write_text(other.read_text().replace(name, '"node Relu f32[1,7] -> f32[1,7]"'))
    table = LatencyTable.open(other)
    with pytest.raises(MissingKernelError, match="does not know all kernels"):
        table.predict(space.smallest)
    assert not table.runtime.fused_blocks.asked


def test_record_of_a_block_is_read_as_it_was_written() -> None:
    place = Place("a1", "plain", "shuffle", 3)
    record = BlockRecord.of(place, FusedBlock((kernel("Relu"),), True, False))
    assert record.place == place
    written = record.to_json()
    assert written["record"] == "block"
    assert BlockRecord(**{**written, "kernels": tuple(written["kernels"])}) == record
