"""`plan_split`: the best place to cut a network between a device and a server, or none.

The part of the network before a cut runs on the device, which sends the tensor at the cut to the
server, and the server answers with the logits. Both latencies are predicted by tables. A link adds
a round trip and the time that the bytes take:

    >>> Link(bandwidth_mbps=8, rtt_ms=5).us(1000)
    6000.0

A cut lies where one tensor crosses, and between kernels that the runtimes of both tables keep
apart: the kernels of the two parts are those of the whole network. Where a runtime would convert
the tensor to a layout of its own, the parts have such a conversion more, and it is counted.

What is not counted: compressing, rounding and packing what is sent, and reading the image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nas.errors import KernelError, MissingKernelError, RequestError
from nas.graph import Graph, Op, Shape
from nas.kernels.kernel import Kernel
from nas.kernels.kernel_text import CONVERSION_KINDS
from nas.kernels.node import LAYOUT_KIND
from nas.latency import LatencyTable, Runtime
from nas.latency.prediction import joined_basis
from nas.latency.timing import MEASURED
from nas.plans.split_wire import TRANSFERS, message_bytes
from nas.space import Architecture

_NAMES = {
    "device": "all on the device",
    "pixels": "all on the server, pixels sent",
    "jpeg": "all on the server, JPEG sent",
}
"""What the ways without a cut are called."""

_RESHAPING_KINDS = CONVERSION_KINDS | {LAYOUT_KIND}
"""Kinds of kernels that compute nothing, which a part may have more than the whole network."""


@dataclass(frozen=True)
class Link:
    """A connection between device and server that is open already.

    Args:
        bandwidth_mbps: megabits a second, in either direction.
        rtt_ms: time of a round trip without content, in milliseconds.

    Raises RequestError for a bandwidth that is not above zero, or a round trip below zero.
    """

    bandwidth_mbps: float
    rtt_ms: float

    def __post_init__(self) -> None:
        if not 0 < self.bandwidth_mbps < math.inf:
            raise RequestError(
                f"The bandwidth is {self.bandwidth_mbps:g} Mbit/s.",
                remedy="Give a number above zero, such as --bandwidth-mbps 20.",
            )
        if not 0 <= self.rtt_ms < math.inf:
            raise RequestError(
                f"The round trip takes {self.rtt_ms:g} ms.",
                remedy="Give a number from zero on, such as --rtt-ms 5.",
            )

    def us(self, size_bytes: float) -> float:
        """Return the time of a request and its answer, with so many bytes in both, in us."""
        return 1000 * self.rtt_ms + 8 * size_bytes / self.bandwidth_mbps


@dataclass(frozen=True)
class Way:
    """One way to classify an image: where it is computed, and what is sent.

    Attributes:
        name: `device`, all on the device; `pixels` or `jpeg`, all on the server; or `cut`.
        device_us, server_us: predicted latency of the part there, in microseconds.
        sent_bytes: size of what the device sends; 0 if it sends nothing.
        answer_bytes: size of the answer.
        memory_bytes: size of the activations on the device that are alive at once.
        weight_bytes: size of the weights on the device.
        figures: sums over the kernels on the device that its runtime knows, such as `energy_uj`.
        position: position in the folded graph of the op whose output is sent; None without a cut.
        after: name of that op; empty without a cut.
        shape: shape of the tensor; None without a cut.
        transfer: type of the values that are sent; None without a cut.
    """

    name: str
    device_us: float
    server_us: float
    sent_bytes: float = 0
    answer_bytes: float = 0
    memory_bytes: float = 0
    weight_bytes: int = 0
    figures: Mapping[str, float] = field(default_factory=dict)
    position: int | None = None
    after: str = ""
    shape: Shape | None = None
    transfer: str | None = None

    @property
    def words(self) -> str:
        """What the way is called, such as `at 7, after stage1.0.project`."""
        return _NAMES.get(self.name, f"at {self.position}, after {self.after}")

    def link_us(self, link: Link) -> float:
        """Return how long device and server wait for the link, in microseconds."""
        return link.us(self.sent_bytes + self.answer_bytes) if self.sent_bytes else 0.0

    def latency_us(self, link: Link) -> float:
        """Return the latency of an image, in microseconds."""
        return self.device_us + self.link_us(link) + self.server_us


@dataclass(frozen=True)
class SplitPlan:
    """The cuts of a network between a device and a server, and their rivals.

    Attributes:
        link: the link.
        rivals: the ways without a cut.
        cuts: every cut with each type of values, in the order of their positions.
        refused: why there is no cut at the other positions of the folded graph, by position.
        unknown: why the latency of a cut is not known, by position.
        basis: `measured`, or how latencies of the tables are estimated.
    """

    link: Link
    rivals: tuple[Way, ...]
    cuts: tuple[Way, ...]
    refused: Mapping[int, str]
    unknown: Mapping[int, str]
    basis: str = MEASURED

    def fastest(self, transfer: str, link: Link | None = None) -> Way:
        """Return the fastest way, of the rivals and of the cuts that send values of this type."""
        return self._fastest([*self.rivals, *self._sending(transfer)], link)

    def fastest_cut(self, transfer: str, link: Link | None = None) -> Way | None:
        """Return the fastest cut that sends values of this type; None if there is no cut."""
        own = self._sending(transfer)
        return self._fastest(own, link) if own else None

    def best(self, transfer: str) -> Way | None:
        """Return the fastest cut if it is faster than all rivals; None if a rival is."""
        way = self.fastest(transfer)
        return way if way.name == "cut" else None

    def cut_at(self, position: int, transfer: str) -> Way:
        """Return the cut at a position.

        Raises:
            RequestError: there is none, such as inside of a fused kernel.
            MissingKernelError: a table lacks a kernel of it.
        """
        for way in self._sending(transfer):
            if way.position == position:
                return way
        if position in self.unknown:
            raise MissingKernelError(
                f"The cut at {position} has no latency: {self.unknown[position]}",
                remedy="Time its kernels on the device of the table, with --build.",
            )
        places = sorted({way.position for way in self.cuts if way.position is not None})
        reason = self.refused.get(position, "the network has no op there that others follow")
        raise RequestError(
            f"The network cannot be cut at {position}: {reason}.",
            remedy=f"Cut it at {', '.join(map(str, places))}." if places else "It has no cut.",
        )

    def by_bandwidth(self, transfer: str) -> list[tuple[float, Way]]:
        """Return the fastest way at each bandwidth, with the round trip of the link.

        Returns:
            The ways with the bandwidth in Mbit/s from which each is the fastest, from 0 on.
        """
        ways = [*self.rivals, *self._sending(transfer)]

        # The latency in us is a sum of bits over the bandwidth and what the bandwidth leaves.
        def bits(way: Way) -> float:
            return 8 * (way.sent_bytes + way.answer_bytes)

        def rest_us(way: Way) -> float:
            return way.latency_us(self.link) - bits(way) / self.link.bandwidth_mbps

        steps = [(0.0, min(ways, key=lambda way: (bits(way), rest_us(way))))]
        while True:
            _, now = steps[-1]
            later = [
                ((bits(way) - bits(now)) / (rest_us(now) - rest_us(way)), rest_us(way), way)
                for way in ways
                if rest_us(way) < rest_us(now)
            ]
            if not later:
                return steps
            bandwidth, _, way = min(later, key=lambda each: each[:2])
            steps.append((bandwidth, way))

    def _sending(self, transfer: str) -> list[Way]:
        return [way for way in self.cuts if way.transfer == transfer]

    def _fastest(self, ways: Sequence[Way], link: Link | None) -> Way:
        return min(ways, key=lambda way: way.latency_us(link or self.link))


def halves(graph: Graph, position: int) -> tuple[Graph, Graph]:
    """Return the two parts of a folded graph, cut behind the op at a position.

    The input of the second part stands for the output of that op, which alone crosses.
    """
    ops = graph.ops
    entry = Op("input", (), ops[position].shape, dtype=graph.dtype)
    rest = [
        op._replace(inputs=tuple(source - position for source in op.inputs))
        for op in ops[position + 1 :]
    ]
    return Graph(ops[: position + 1]), Graph((entry, *rest))


def find_cuts(graph: Graph, runtimes: Sequence[Runtime]) -> tuple[list[int], dict[int, str]]:
    """Return the positions at which a folded graph can be cut, and why not at the others.

    Args:
        graph: the folded graph.
        runtimes: the runtimes that run its parts, all of which must keep them apart.

    Returns:
        The positions, and the reason for each other position, a clause.
    """
    wholes = [Counter(runtime.kernels(graph)) for runtime in runtimes]
    last_use = [max(readers, default=0) for readers in graph.consumers]
    positions, refused = [], {}
    for position in range(1, len(graph.ops) - 1):
        crossing = sum(last > position for last in last_use[: position + 1])
        if crossing > 1:
            refused[position] = f"{crossing} tensors cross there, and one is sent"
            continue
        parts = halves(graph, position)
        joined = [
            runtime.name
            for runtime, whole in zip(runtimes, wholes, strict=True)
            if not _keeps_apart(runtime, whole, parts)
        ]
        if joined:
            refused[position] = f"it is inside a kernel of runtime '{joined[0]}'"
        else:
            positions.append(position)
    return positions, refused


def _keeps_apart(runtime: Runtime, whole: Counter[Kernel], parts: Sequence[Graph]) -> bool:
    """Return whether the kernels of two parts are those of the whole, beside conversions."""
    try:
        both = Counter[Kernel](kernel for part in parts for kernel in runtime.kernels(part))
    except (ValueError, MissingKernelError):
        # The runtime has no kernel for an op that it fuses in the whole network, or its optimiser
        # is that of another machine.
        return False
    added = both - whole
    return not whole - both and all(each.kind in _RESHAPING_KINDS for each in added)


def plan_split(
    network: Architecture,
    device: LatencyTable,
    server: LatencyTable,
    link: Link,
    image_bytes: Mapping[str, float],
) -> SplitPlan:
    """Return the cuts of a network between a device and a server.

    Args:
        network: the network.
        device, server: latency tables of the two machines.
        link: the link between them.
        image_bytes: mean size of an image as it is sent if the server computes everything.

    Raises:
        MissingKernelError: a table lacks kernels of the network.
        FailedKernelError, TableError: see `LatencyTable.predict`.
    """
    graph = network.graph.folded
    for table in (device, server):
        require_kernels(table, graph, network)

    def on_device(part: Graph) -> dict[str, Any]:
        return {
            "device_us": part_us(device, part, network),
            "memory_bytes": device.runtime.activation_bytes(part),
            "weight_bytes": sum(map(device.weight_bytes, device.runtime.kernels(part))),
            "figures": device.kernel_figures(part),
        }

    answer = message_bytes(math.prod(graph.output_shape), "float32")
    rivals = [Way("device", server_us=0.0, **on_device(graph))]
    rivals += [
        Way(name, 0.0, part_us(server, graph, network), sent_bytes=size, answer_bytes=answer)
        for name, size in image_bytes.items()
    ]
    positions, refused = find_cuts(graph, [device.runtime, server.runtime])
    cuts: list[Way] = []
    unknown: dict[int, str] = {}
    for position in positions:
        first, second = halves(graph, position)
        shape = first.output_shape
        try:
            costs = {**on_device(first), "server_us": part_us(server, second, network)}
        except KernelError as error:
            unknown[position] = error.message
            continue
        cuts += [
            Way(
                "cut",
                sent_bytes=message_bytes(math.prod(shape), transfer),
                answer_bytes=answer,
                position=position,
                after=op_name(graph, position),
                shape=shape,
                transfer=transfer,
                **costs,
            )
            for transfer in TRANSFERS
        ]
    bases = {table.predict(graph).basis for table in (device, server)} - {MEASURED}
    return SplitPlan(
        link, tuple(rivals), tuple(cuts), refused, unknown, joined_basis(sorted(bases))
    )


def part_us(table: LatencyTable, part: Graph, network: Architecture) -> float:
    """Return the predicted latency of a part of a network in microseconds, as a table corrects it.

    Raises:
        FailedKernelError, MissingKernelError, TableError: see `LatencyTable.predict`.
    """
    correction = table.correction(space=network.space.digest)
    predicted = table.predict(part)
    if correction is None:
        return predicted.uncorrected_us
    return correction.apply(predicted.uncorrected_us, sum(predicted.kernels_us))


def op_name(graph: Graph, position: int) -> str:
    """Return the name of an op: the last weights before it, and what it does to their result."""
    op = graph.ops[position]
    if op.slot is not None:
        return op.slot.name
    slots = [each.slot.name for each in graph.ops[:position] if each.slot is not None]
    return ", ".join([*slots[-1:], op.kind])


def require_kernels(table: LatencyTable, graph: Graph, network: Architecture) -> None:
    """Raise MissingKernelError if a table lacks kernels of a whole network."""
    kernels = dict.fromkeys(table.runtime.kernels(graph))
    if missing := table.missing(kernels):
        raise MissingKernelError(
            f"{table.path.name} lacks {len(missing)} of the {len(kernels)} kernels of the network, "
            f"such as '{missing[0]}'. It may be a table of another space or image size.",
            remedy=f"Add space {network.space.name} on its device with `nas table build`, or give "
            "--build there.",
        )
