"""How ONNX Runtime splits a quantised graph into kernels. Imports nothing heavy.

Convolutions read and write tensors with their channels last, and whatever is in between works in
the layout that it finds, as long as that saves a turn. ONNX Runtime moves the turns to plain before
an op behind it, if those are more than would be needed for its other inputs, and if the one behind
it meets the turn before a convolution or turns less (the cost check of its transpose optimiser). A
maximum is always taken in the layout that comes. A channel shuffle turns a tensor to plain while it
is at it.

So, beyond itself, the kernels of a block depend on the layout in which a tensor enters it, and on
whether what leaves it will be turned again. `QuantisedFusion.block_kernels` has those of all
cases.

ReLU and ReLU6 cost nothing behind a kernel whose result nothing else reads: the range of its eight
bits ends where they would cut. Hard sigmoid and hard swish have no kernels for eight bits: such a
kernel here is the conversion to float32, the function, and the conversion back, which always run
together.

The rules were read from models that onnxruntime 1.31 had optimised. Compiling a network compares
them with what the version at hand really runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from nas.graph import Graph, Op
from nas.latency.kernel import Kernel, batched, shared_kernel, whole_operand
from nas.runtimes.onnxruntime.fusion import OnnxRuntimeFusion
from nas.runtimes.onnxruntime.walk import Node, Walk, join

_CLAMPS = frozenset({"relu", "relu6"})
"""Activations that the range of a tensor's eight bits does."""

LAYOUT_FREE = frozenset({"add", "relu", "hard_sigmoid", "hard_swish"})
"""What a `copy` does to every number by itself, in whatever layout they lie."""


class QuantisedFusion(OnnxRuntimeFusion):
    """See `nas.latency.runtime.Runtime`, for int8."""

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """See `Runtime.kernels`."""
        return batched(_QuantisedWalk(graph.folded, whole=True, batch=batch).kernels(), batch)

    def block_kernels(self, graph: Graph, *, first: bool = False, batch: int = 1) -> list[Kernel]:
        """See `OnnxRuntimeFusion.block_kernels`."""
        graph, found = graph.folded, dict[Kernel, None]()
        for enters, turned_again in product((False, True), repeat=2):
            walk = _QuantisedWalk(
                graph, enters_preferred=enters, turned_again=turned_again, batch=batch
            )
            found.update(dict.fromkeys(walk.kernels()))
        if first:
            image = graph.input_shape
            node = ("quantize", (whole_operand(image),), image, 1, 1, 0, 1, (), 1, "int8")
            found[shared_kernel(*node)] = None
        return batched(found, batch)


class _QuantisedWalk(Walk):
    """The preferred layout is channels last.

    Args:
        turned_again: whether what leaves the graph is turned to channels last behind it.
        batch: images that run at once.
    """

    TO_PREFERRED = "to_nhwc"

    def __init__(
        self,
        graph: Graph,
        *,
        whole: bool = False,
        enters_preferred: bool = False,
        turned_again: bool = False,
        batch: int = 1,
    ) -> None:
        super().__init__(graph, whole=whole, enters_preferred=enters_preferred)
        self._batch = batch
        self._turned_again = self._find_turned_again(turned_again)

    def _find_turned_again(self, last: bool) -> list[bool]:
        """For each tensor, whether a turn to channels last comes behind it, if nothing does."""
        found = [False] * len(self._ops)
        found[-1] = last
        for at in reversed(range(len(self._ops))):
            for reader in self._graph.consumers[at]:
                kind = self._ops[reader].kind
                found[at] |= kind == "conv" or (kind not in ("linear", "shuffle") and found[reader])
        return found

    def kernels(self) -> list[Kernel]:
        """See `Walk.kernels`."""
        if self._whole:
            self._emit("quantize", 0, self._ops[0], reads=(0,)).due = 0.25
        return super().kernels()

    def _hand_over(self, last: int) -> None:
        super()._hand_over(last)
        if self._whole or last in self._vectors:
            self._emit("dequantize", last, self._ops[last], reads=(last,)).due = last + 0.9

    def _layout(self, node: Node) -> tuple[int, str, bool]:
        free = node.kind == "copy" and LAYOUT_FREE.issuperset(node.epilogue) and node.epilogue
        return 1, "int8", node.preferred and not free

    def _conv(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._need_map(source)
        self._need_preferred(source)
        node = self._emit("conv2d", at, op, ["bias"] * op.bias)
        node.preferred = True
        self._made(at, node)

    def _pool(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._need_map(source)
        node = self._emit(op.kind, at, op)
        always = op.kind == "max_pool" and source in self._preferred
        node.preferred = always or self._moves_turn(at, op.inputs)
        (self._need_preferred if node.preferred else self._need_plain)(source)
        self._made(at, node)

    def _binary(self, at: int, op: Op) -> None:
        self._in_one_layout(at, op, "copy", [join(op)], op.inputs[:1])

    def _concat(self, at: int, op: Op) -> None:
        self._in_one_layout(at, op, "concat", [], op.inputs)

    def _activation(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        maker = self._maker.get(source)
        if op.kind in _CLAMPS and self._uses[source] == 1 and (maker or not self._whole):
            self._same(at, source)
        else:
            # A tensor that others read before it is cut off is rounded a second time.
            kind = "relu" if op.kind in _CLAMPS else op.kind
            self._in_one_layout(at, op, "copy", [kind], op.inputs)

    def _in_one_layout(
        self, at: int, op: Op, kind: str, epilogue: Sequence[str], reads: tuple[int, ...]
    ) -> None:
        """A kernel whose operands all have the layout in which it works."""
        vectors = self._alike(op)
        preferred = not vectors and self._moves_turn(at, op.inputs)
        for source in op.inputs:
            (self._need_preferred if preferred else self._need_plain)(source)
        node = self._emit(kind, at, op, epilogue, reads)
        node.preferred = preferred
        self._made(at, node, vector=vectors)

    def _moves_turn(self, at: int, sources: Sequence[int]) -> bool:
        """Whether turns before an op are moved behind it: if what is turned is less then.

        ONNX Runtime measures a tensor by its sizes other than 1. A turn that will meet another
        one costs nothing.
        """
        before = sum(
            self._dimensions(source) * (1 if source in self._preferred else -1)
            for source in sources
        )
        return before > (0 if self._turned_again[at] else self._dimensions(at))

    def _dimensions(self, at: int) -> int:
        return sum(size != 1 for size in (self._batch, *self._ops[at].shape))

    def _slices_preferred(self, source: int) -> bool:
        parts = [at for at in self._graph.consumers[source] if self._ops[at].kind == "slice"]
        again = any(self._turned_again[at] for at in parts)
        return source in self._preferred and again

    def _shuffle(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._need_map(source)
        node = self._emit("copy", at, op, [f"shuffle{op.groups}"])
        self._made(at, node)
        # Only what it reads may have its channels last.
        node.preferred = source in self._preferred

    def _same(self, at: int, source: int) -> None:
        """The tensor of op `at` is the same as another one."""
        if source in self._vectors:
            self._vectors.add(at)
        if source in self._maps:
            self._maps.add(at)
        if source in self._preferred:
            self._preferred.add(at)
        if source in self._turned:
            self._turned.add(at)
        if source in self._maker:
            self._maker[at] = self._maker[source]
            self._maker[at].due = at
