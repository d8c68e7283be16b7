"""How LiteRT splits a graph into kernels on a processor. Imports nothing heavy.

LiteRT runs a file of TensorFlow Lite operators (`nas.tflite_model`). Its delegate XNNPACK takes all
of them that it has kernels for, and fuses little on its own:

- Convolutions, linear layers and additions apply a ReLU or ReLU6 themselves; a quantised
  convolution or linear layer applies a hard sigmoid, too. A convolution takes its padding.
- Every other activation, multiplication, addition and slice is a kernel of its own.
- A channel shuffle of a concatenation belongs to the kernel of the concatenation: it rearranges the
  concatenated tensor in place, which one of a tensor with other readers cannot.
- A quantised network converts its images at the start and its output at the end.

XNNPACK runs some of these kernels as several operators, such as the three of a channel shuffle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nas.graph import ACTIVATIONS, Graph, Op
from nas.kernels.fusion import KERNEL_KINDS, kernel_of_op
from nas.kernels.kernel import Kernel, batched, interned_operand
from nas.kernels.kernel_text import Operand, epilogue_step
from nas.quantisation.network import FUSED_ACTIVATIONS, FUSING_KINDS

_LARGEST_DEPTHWISE = 5
"""Size of the largest depthwise convolution for which XNNPACK has a kernel of its own."""

_PACKED_OUTPUTS = 16
_PACKED_INPUTS = {"float32": 1, "int8": 8}
"""Output and input channels of which XNNPACK packs a multiple on x86 with AVX-512. On other
processors these are 4 to 32 and 1 to 8."""


def kernels(graph: Graph, dtype: str, batch: int = 1) -> list[Kernel]:
    """Return the kernels of a network in the order in which they run.

    Args:
        graph: the network. Its norms are folded first.
        dtype: `float32` or `int8`.
        batch: number of images that run at once.
    """
    return batched([kernel for kernel, _ in network_launches(graph, dtype)], batch)


def network_launches(graph: Graph, dtype: str) -> list[tuple[Kernel, int]]:
    """Return the kernels for one image, each with the position of its first op in `graph.folded`.

    The conversions of the output come after the last op.
    """
    return _launches(graph.folded, dtype, has_images=True, has_output=True)


def block_kernels(graph: Graph, dtype: str, *, first: bool, batch: int = 1) -> list[Kernel]:
    """Return the kernels of a block. One whose output is a vector is the last of its network.

    Args:
        graph: the block.
        dtype: `float32` or `int8`.
        first: whether images enter it.
        batch: number of images that run at once.
    """
    has_output = graph.output_shape[1:] == (1, 1)
    launched = _launches(graph.folded, dtype, has_images=first, has_output=has_output)
    return batched([kernel for kernel, _ in launched], batch)


def is_split_by_channel(kernel: Kernel) -> bool:
    """Return whether XNNPACK runs a depthwise convolution as a matrix product for each channel."""
    return kernel.is_depthwise and kernel.kernel > _LARGEST_DEPTHWISE


def packed_weight_bytes(kernel: Kernel) -> int:
    """Return the size of a kernel's weights as XNNPACK packs them, without biases.

    The channels of every matrix product are padded, so weights of 7x7 depthwise convolutions take
    16 times their own size in float32, and 128 times in int8.
    """
    if not kernel.has_weights or (kernel.is_depthwise and not is_split_by_channel(kernel)):
        return kernel.weight_bytes
    outputs, inputs = kernel.weight_shape[0] // kernel.groups, kernel.weight_shape[1]
    padded = _padded(outputs, _PACKED_OUTPUTS) * _padded(inputs, _PACKED_INPUTS[kernel.dtype])
    return kernel.weight_bytes * padded // (outputs * inputs)


def _padded(channels: int, multiple: int) -> int:
    return math.ceil(channels / multiple) * multiple


def fused_follower(graph: Graph, at: int, dtype: str) -> int | None:
    """Return the position of the op that runs in the kernel of op `at`; None if there is none.

    Args:
        graph: folded graph.
        at: position of the op that starts the kernel.
        dtype: `float32` or `int8`.
    """
    if len(graph.consumers[at]) != 1:
        return None
    (follower,) = graph.consumers[at]
    kind, follower_kind = graph.ops[at].kind, graph.ops[follower].kind
    if kind == "concat":
        return follower if follower_kind == "shuffle" else None
    fuses = kind in FUSING_KINDS and follower_kind in FUSED_ACTIVATIONS
    fuses |= dtype == "int8" and kind in ("conv", "linear") and follower_kind == "hard_sigmoid"
    return follower if fuses else None


def _launches(
    graph: Graph, dtype: str, *, has_images: bool, has_output: bool
) -> list[tuple[Kernel, int]]:
    """Return the kernels for one image, each with the position of its first op."""
    launched: list[tuple[Kernel, int]] = []
    if has_images and dtype == "int8":
        launched.append((_conversion("quantize", graph.ops[0], dtype), 0))
    fused: set[int] = set()
    for at, op in enumerate(graph.ops):
        if op.kind == "input" or at in fused:
            continue
        follower = fused_follower(graph, at, dtype)
        steps = ["bias"] if op.bias else []
        if follower is not None:
            fused.add(follower)
            steps.append(_step(graph.ops[follower]))
        launched.append((_kernel(graph.ops, op, steps, dtype), at))
    last = len(graph.ops) - 1
    if has_output and graph.output_shape[1:] == (1, 1):
        launched.append((_conversion("view", graph.ops[-1], dtype), last))
    if has_output and dtype == "int8":
        launched.append((_conversion("dequantize", graph.ops[-1], dtype), last))
    return launched


def _kernel(ops: Sequence[Op], op: Op, steps: list[str], dtype: str) -> Kernel:
    """Return the kernel that starts with an op, and applies steps to its output."""
    kind = KERNEL_KINDS.get(op.kind, "copy")
    operands = [interned_operand(ops[source].shape) for source in op.inputs]
    if op.kind == "slice":
        operands = [Operand(operands[0].shape, op.start, op.start + op.shape[0])]
    elif op.kind in ("add", "multiply"):
        operands, (other,) = operands[:1], operands[1:]
        steps = [epilogue_step(op.kind, other, op.shape), *steps]
    elif kind == "copy":
        steps = [_step(op), *steps]
    return kernel_of_op(kind, operands, op, steps, dtype=dtype)


def _step(op: Op) -> str:
    """Return the epilogue step of an activation or a channel shuffle."""
    if op.kind == "shuffle":
        return f"shuffle{op.groups}"
    if op.kind not in ACTIVATIONS:
        raise ValueError(f"LiteRT has no kernel for a {op.kind} on its own")
    return op.kind


def _conversion(kind: str, op: Op, dtype: str) -> Kernel:
    return kernel_of_op(kind, [interned_operand(op.shape)], op, dtype=dtype)
