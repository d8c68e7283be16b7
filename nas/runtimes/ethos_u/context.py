"""A kernel between other operations, as it stands in a network.

Vela's cycles for an operation alone are wrong by up to a factor of six where inputs and outputs of
a network live in slow memory, and weights are read while the operation before runs. So the operands
of a kernel come from 1x1 convolutions of few channels, and another one reads its result. What
average pooling reads has a second reader, as in the units of ShuffleNetV1.
"""

from __future__ import annotations

from collections.abc import Sequence

from nas.graph import Graph, Op, Shape
from nas.kernels.fusion import add_kernel, weight_slot
from nas.kernels.kernel import Kernel
from nas.kernels.kernel_text import Operand
from nas.runtimes.ethos_u.vela import OperatorRow

CONTEXT_CHANNELS = 16
"""Channels that the convolutions before a kernel read, and that the one after it writes."""

IMAGE_CHANNELS = (1, 3)
"""Channels of an operand that is the network's input and has no convolution before it. The tensors
inside of networks have more."""


class KernelInContext:
    """The graph of a kernel with the convolutions around it.

    Args:
        kernel: the kernel.

    Attributes:
        graph: the graph.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._ops: list[Op] = []
        first = kernel.inputs[0]
        self._is_image = first.shape[0] in IMAGE_CHANNELS
        channels = first.shape[0] if self._is_image else CONTEXT_CHANNELS
        self._add("input", (), (channels, *first.shape[1:]))
        inputs = [self._operand(operand, kernel, at) for at, operand in enumerate(kernel.inputs)]
        others = [
            self._operand(operand, kernel, len(inputs) + at, inputs[0])
            for at, operand in enumerate(kernel.epilogue_operands)
        ]
        # Each op so far is written as one operator, except for the input, which is none.
        self._first = len(self._ops) - 1
        result = add_kernel(self._ops, kernel, [*inputs, *others], "kernel")
        kernel_end = len(self._ops)
        # The output of a linear layer is that of the network.
        if kernel.kind != "linear":
            shape = (CONTEXT_CHANNELS, *kernel.output[1:])
            reader = self._convolve("reader", result, shape)
            if kernel.kind == "avg_pool":
                # It stands beside a branch of convolutions that reads the same tensor, which is
                # therefore copied to be padded. The operation before would pad its output itself.
                branch = self._convolve("branch", inputs[0], shape)
                self._add("add", (reader, branch), shape)
        # These, too, are written as one operator each.
        self._readers = len(self._ops) - kernel_end
        self.graph = Graph(tuple(self._ops))

    def own_rows(self, rows: Sequence[OperatorRow]) -> list[OperatorRow]:
        """Return those of the operations of the compiled graph that the kernel consists of."""
        end = max(row.source for row in rows) + 1 - self._readers
        return [row for row in rows if self._first <= row.source < end]

    def _operand(self, operand: Operand, kernel: Kernel, at: int, gated: int = 0) -> int:
        """Add what computes an operand of the kernel; return the position of its tensor.

        Args:
            operand: the operand.
            kernel: the kernel.
            at: position of the operand.
            gated: position of the tensor that a gate is computed from.
        """
        if self._is_image and at == 0:
            return 0
        source = 0
        if operand.shape[1:] == (1, 1) != kernel.inputs[0].shape[1:]:
            # A gate: the tensor that it scales is read twice, and is not fused with its producer.
            pooled = self._add("global_pool", (gated,), (self._ops[gated].shape[0], 1, 1))
            source = self._convolve(f"context{at}.reduce", pooled, (CONTEXT_CHANNELS, 1, 1))
        tensor = self._convolve(f"context{at}", source, operand.shape)
        if operand != Operand.whole(operand.shape):
            shape = operand.channels, *operand.shape[1:]
            tensor = self._add("slice", (tensor,), shape, start=operand.start)
        return tensor

    def _convolve(self, name: str, source: int, shape: Shape) -> int:
        """Add a 1x1 convolution, whose stride makes a map of this shape."""
        stride = -(-self._ops[source].shape[1] // shape[1])
        slot = weight_slot(name, shape[0])
        return self._add("conv", (source,), shape, stride=stride, bias=True, slot=slot)

    def _add(self, kind: str, inputs: tuple[int, ...], shape: Shape, **fields: object) -> int:
        self._ops.append(Op(kind, inputs, shape, **fields))  # type: ignore[arg-type]
        return len(self._ops) - 1
