"""`Part`: what a block adds to a network, worked out once and placed wherever it occurs.

A space has few different blocks and very many networks. A block's ops, counts and text depend only
on its incoming tensor and its choices, so a network is lowered by looking its parts up: counts add
up, peak memory is the largest of the parts' (one tensor passes from a part to the next), and the
ops themselves are put together when somebody asks for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

from nas.documents import shortened
from nas.errors import SpaceError
from nas.graph import ACTIVATIONS, Graph, Op, Shape, Slot
from nas.space.builder import Builder, Tensor

_tokens: dict[tuple[str, int], int] = {}
"""Every op text that occurred, with the channels it reads, as a number."""

_spelled: list[tuple[str, int]] = []

_FUSED = ACTIVATIONS | {"norm", "add", "multiply", "shuffle"}


def token(text: str, inputs: int) -> int:
    """A number for an op: equal for ops that compute alike and cost alike.

    Which number depends on what was met before; `spelled` does not.
    """
    number = _tokens.setdefault((text, inputs), len(_tokens))
    if number == len(_spelled):
        _spelled.append((text, inputs))
    return number


def spelled(number: int) -> tuple[str, int]:
    """What a token stands for: the op's text and the channels it reads."""
    return _spelled[number]


def input_token(shape: Shape) -> int:
    """The number that a network starts with: its input."""
    return token(f"input {shape}", 0)


class Part:
    """The ops that a block adds behind its incoming tensor.

    Args:
        graph: the block by itself; its input stands for the incoming tensor.
        out: what the block returned.
        prefix: what its slots' names start with; replaced where the part is placed.

    Raises SpaceError for a block that returns something else than the tensor it added last, whose
    slots have other names, or that would be fused with the block before: parts could not be put
    together, or their kernels would not be those of the whole.
    """

    __slots__ = (
        "_placed",
        "_prefix",
        "channels",
        "graph",
        "is_view",
        "macs",
        "params",
        "peak_memory_bytes",
        "shape",
        "text",
        "word",
    )

    def __init__(self, graph: Graph, out: Tensor, prefix: str) -> None:
        ops = graph.ops
        if not isinstance(out, Tensor):
            raise SpaceError(
                f"The block returns {shortened(out)}.",
                remedy="Return the tensor of the last op that it adds.",
            )
        if out.position != len(ops) - 1:
            raise SpaceError(
                "The block returns a tensor that is not the last it made.",
                remedy="Return the last op's tensor, and leave out ops that nothing reads.",
            )
        for op in ops:
            if op.slot is not None and not op.slot.name.startswith(prefix):
                raise SpaceError(
                    f"The block calls its weights {op.slot.name!r}.",
                    remedy='Let the names start with the block\'s name, f"{name}.expand".',
                )
        for position in graph.consumers[0]:
            if len(graph.consumers[0]) == 1 and ops[position].kind in _FUSED:
                raise SpaceError(
                    f"The block begins with {ops[position].kind}, which runtimes fuse with the "
                    "block before: no latency table could have the kernel.",
                    remedy="Put it at the end of the blocks before.",
                )
        self.graph = graph
        self.shape, self.channels = out.shape, out.channels
        self.macs, self.params = graph.macs, graph.params
        self.peak_memory_bytes = graph.peak_memory_bytes
        self.is_view = ops[-1].kind == "slice"
        texts = [op.text(position) for position, op in enumerate(ops)][1:]
        self.text = "\n".join(texts)
        self.word = tuple(
            token(text, graph.input_channels(op)) for text, op in zip(texts, ops[1:], strict=True)
        )
        self._prefix = prefix
        self._placed: dict[tuple[int, str], tuple[Op, ...]] = {}

    @classmethod
    def image(cls, builder: Builder) -> Part:
        """The input alone, which a network's first block stands behind."""
        return cls(builder.graph(), builder.input, "")

    def placed(self, position: int, name: str) -> tuple[Op, ...]:
        """The ops behind an incoming tensor at `position`, their slots called `name...`."""
        found = self._placed.get((position, name))
        if found is None:
            found = tuple([self._moved(op, position, name) for op in self.graph.ops[1:]])
            self._placed[position, name] = found
        return found

    def _moved(self, op: Op, position: int, name: str) -> Op:
        inputs = tuple([position + source for source in op.inputs])
        slot: Slot | None = op.slot
        if slot is not None:
            slot = slot._replace(name=name + slot.name[len(self._prefix) :])
        return op._replace(inputs=inputs, slot=slot)


class Chain(Graph):
    """The graph of parts in a row; `parts` has each with the name that its slots get."""

    def __init__(self, image: Op, parts: Sequence[tuple[Part, str]]) -> None:
        self._image, self.parts = image, parts

    @cached_property
    def ops(self) -> tuple[Op, ...]:
        """What runs."""
        ops = [self._image]
        for part, name in self.parts:
            ops += part.placed(len(ops) - 1, name)
        return tuple(ops)

    @property
    def pieces(self) -> tuple[Graph, ...]:
        """See `Graph.pieces`."""
        return tuple([part.graph for part, _ in self.parts])

    @cached_property
    def text(self) -> str:
        """See `Graph.text`."""
        return "\n".join([self._image.text(0), *[part.text for part, _ in self.parts]])

    @cached_property
    def digest(self) -> str:
        """See `Graph.digest`."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @cached_property
    def macs(self) -> int:
        """See `Graph.macs`."""
        return sum([part.macs for part, _ in self.parts])

    @cached_property
    def params(self) -> int:
        """See `Graph.params`."""
        return sum([part.params for part, _ in self.parts])

    @cached_property
    def peak_memory_bytes(self) -> int:
        """See `Graph.peak_memory_bytes`."""
        if any(part.is_view for part, _ in self.parts):
            # A view keeps alive more than its own shape says.
            return Graph(self.ops).peak_memory_bytes
        c, h, w = self._image.shape
        return max([4 * c * h * w, *[part.peak_memory_bytes for part, _ in self.parts]])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """See `Graph.input_shape`."""
        return self._image.shape
