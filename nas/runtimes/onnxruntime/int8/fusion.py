"""How ONNX Runtime splits a quantised graph into kernels. Imports nothing heavy.

Convolutions read and write tensors with their channels last. Other ops work in the layout of their
inputs if that saves transpositions: ONNX Runtime moves transpositions to the plain layout from the
inputs of an op to its output, if the inputs have more of them than its other inputs would then
need, and if the transposition of the output cancels out with one before a convolution or moves
less data (the cost check of its transpose optimiser). Max pooling always works in the layout of its
input. A channel shuffle reads a plain tensor: models are for any batch size, and no transposition
moves past the reshaping of a tensor with an unknown size.

So the kernels of a block depend on that block, on the layout in which a tensor enters it, and on
whether its output will be converted back to channels last. `QuantisedFusion.block_kernels` returns
the kernels of all cases.

A ReLU or ReLU6 costs nothing if an export fuses it with the op before it
(`nas.quantisation.network`): the range of the eight bits ends where it would clip. It does not if
the tensor shares its range with one that has negative values, by a concatenation: no space of the
project has such networks, and they are refused. There are no int8 kernels for hard sigmoid and hard
swish. Their kernels here are the conversion to float32, the function, and the conversion back,
which always run together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from nas.graph import Graph, Op
from nas.quantisation.network import FUSED_ACTIVATIONS, fused_activation
from nas.runtimes.onnxruntime.fusion import (
    FusedNode,
    FusionPass,
    OnnxRuntimeFusion,
    binary_step,
)

LAYOUT_FREE = frozenset({"add", "relu", "hard_sigmoid", "hard_swish"})
"""Steps of a `copy` that treat every number alike, so that their kernels fit any layout."""


class QuantisedFusion(OnnxRuntimeFusion):
    """The fusion rules of int8."""

    dtype = "int8"

    def network_pass(self, graph: Graph) -> FusionPass:
        """See `OnnxRuntimeFusion.network_pass`."""
        return _QuantisedPass(graph.folded, whole=True, has_image=True)

    def block_passes(self, graph: Graph, *, first: bool) -> Iterable[FusionPass]:
        """See `OnnxRuntimeFusion.block_passes`."""
        for enters, converted_back in product((False, True), repeat=2):
            yield _QuantisedPass(
                graph, has_image=first, enters_preferred=enters, converted_back=converted_back
            )


class _QuantisedPass(FusionPass):
    """The fusion pass of int8, whose preferred layout is channels last.

    Args:
        graph: see `FusionPass`.
        whole: see `FusionPass`.
        has_image: whether an image enters, which is quantised first.
        enters_preferred: see `FusionPass`.
        converted_back: whether the output of the graph is converted to channels last behind it.
    """

    TO_PREFERRED = "to_nhwc"

    def __init__(
        self,
        graph: Graph,
        *,
        whole: bool = False,
        has_image: bool = False,
        enters_preferred: bool = False,
        converted_back: bool = False,
    ) -> None:
        super().__init__(graph, whole=whole, enters_preferred=enters_preferred)
        self._has_image = has_image
        self._converted_back = self._find_converted_back(converted_back)

    def _find_converted_back(self, output: bool) -> list[bool]:
        """Return for each tensor whether it would be converted to channels last if it were plain.

        Args:
            output: whether the output of the graph is.
        """
        converted_back = [False] * len(self._ops)
        converted_back[-1] = output
        for at in reversed(range(len(self._ops))):
            for reader in self._graph.consumers[at]:
                kind = self._ops[reader].kind
                passes_on = kind not in ("linear", "shuffle") and converted_back[reader]
                converted_back[at] |= kind == "conv" or passes_on
        return converted_back

    def nodes(self) -> list[FusedNode]:
        """See `FusionPass.nodes`."""
        if self._has_image:
            self._add_node("quantize", 0, self._ops[0], inputs=(0,)).position = 0.25
        return super().nodes()

    def _return_output(self, last: int) -> None:
        super()._return_output(last)
        if self._whole or last in self._vectors:
            dequantize = self._add_node("dequantize", last, self._ops[last], inputs=(last,))
            dequantize.position = last + 0.9

    def _layout(self, node: FusedNode) -> dict[str, Any]:
        fits_any = node.kind == "copy" and LAYOUT_FREE.issuperset(node.epilogue) and node.epilogue
        return {"dtype": "int8", "channels_last": node.preferred and not fits_any}

    def _visit_conv(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._require_map(source)
        self._add_in_layout(at, op, "conv2d", ["bias"] * op.bias, preferred=True)

    def _visit_pool(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        self._require_map(source)
        keeps_layout = op.kind == "max_pool" and source in self._preferred
        preferred = keeps_layout or self._moves_conversion(at, op.inputs)
        self._add_in_layout(at, op, op.kind, preferred=preferred)

    def _visit_binary(self, at: int, op: Op) -> None:
        self._add_node_in_one_layout(at, op, "copy", [binary_step(op)], op.inputs[:1])

    def _visit_concat(self, at: int, op: Op) -> None:
        self._add_node_in_one_layout(at, op, "concat", [], op.inputs)

    def _visit_activation(self, at: int, op: Op) -> None:
        (source,) = op.inputs
        if fused_activation(self._graph, source) == at:
            self._set_alias(at, source)
        else:
            # Every other tensor is clipped and rounded by a kernel of its own.
            kind = "relu" if op.kind in FUSED_ACTIVATIONS else op.kind
            self._add_node_in_one_layout(at, op, "copy", [kind], op.inputs)

    def _add_node_in_one_layout(
        self, at: int, op: Op, kind: str, epilogue: Sequence[str], inputs: tuple[int, ...]
    ) -> None:
        """Add a node whose operands all have the layout in which it works."""
        vectors = self._are_vectors(op)
        preferred = not vectors and self._moves_conversion(at, op.inputs)
        self._add_in_layout(at, op, kind, epilogue, inputs, preferred=preferred, vectors=vectors)

    def _moves_conversion(self, at: int, sources: Sequence[int]) -> bool:
        """Return whether layout conversions before an op move behind it.

        They do if less is converted then. ONNX Runtime measures a tensor by the number of its sizes
        other than 1, and a conversion that cancels out with another one costs nothing. A batch may
        have any size.
        """
        before = sum(
            self._dimensions(source) * (1 if source in self._preferred else -1)
            for source in sources
        )
        return before > (0 if self._converted_back[at] else self._dimensions(at))

    def _dimensions(self, at: int) -> int:
        return 1 + sum(size != 1 for size in self._ops[at].shape)

    def _slices_preferred(self, source: int) -> bool:
        parts = [at for at in self._graph.consumers[source] if self._ops[at].kind == "slice"]
        converted_back = any(self._converted_back[at] for at in parts)
        return source in self._preferred and converted_back

    def _set_alias(self, at: int, source: int) -> None:
        """Record that the tensor of op `at` is the same as another one."""
        if source in self._vectors:
            self._vectors.add(at)
        if source in self._maps:
            self._maps.add(at)
        if source in self._preferred:
            self._preferred.add(at)
        if source in self._converted:
            self._converted.add(at)
        if source in self._maker:
            self._maker[at] = self._maker[source]
            self._maker[at].position = at
