"""The default fusion: split a graph into kernels by rules that hold for most compilers.

A convolution is fused with its bias and with the activations and residual additions that read only
its result. A concatenation is fused with the channel shuffle that follows it. A channel slice is a
view: the kernels that read it read a range of channels. The gate of a squeeze-and-excitation layer
is a kernel of its own, because the tensor that it scales is also averaged to compute the gate.

On request, a depthwise convolution is also fused with the 1x1 convolution of the same block that
computes its input, if nothing else reads that input (`fuse_expansions`).

All rules are local: a kernel never depends on anything beyond the neighbouring block, so the
kernels of a search space can be listed from its blocks alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from nas.graph import ACTIVATIONS, Channels, Graph, Op, Slot
from nas.kernels.kernel import Kernel, batched, interned_kernel, interned_operand
from nas.kernels.kernel_text import WINDOW_KINDS, Operand, epilogue_step

KERNEL_KINDS = {
    "conv": "conv2d",
    "linear": "linear",
    "max_pool": "max_pool",
    "avg_pool": "avg_pool",
    "global_pool": "global_pool",
    "concat": "concat",
}
"""The kind of the kernel that starts with an op, by the kind of the op. Others are copies."""

_ANCHORS = {kernel_kind: kind for kind, kernel_kind in KERNEL_KINDS.items()}

_result = attrgetter("result")


class Launch(NamedTuple):
    """A kernel at its place in a network.

    Args:
        kernel: the kernel.
        sources: for each of `kernel.operands`, index of the op that computes it; 0 is the input.
        result: index of the op whose output the kernel computes.
        slot: name of its weights; empty if it has none.
        expansion: name of the weights of its expansion; empty if it has none.
    """

    kernel: Kernel
    sources: tuple[int, ...]
    result: int
    slot: str
    expansion: str = ""


def kernels(graph: Graph, batch: int = 1, *, fuse_expansions: bool = False) -> list[Kernel]:
    """Return the kernels of a graph in launch order.

    `graph` and `graph.folded` have the same kernels, and the batch size does not change the fusion.

    Args:
        graph: the network, or a block of one.
        batch: number of images that each kernel works on.
        fuse_expansions: whether depthwise convolutions take the 1x1 convolution before them.

    Raises:
        ValueError: no kernel starts with one of the ops, such as a normalisation on its own.
    """
    return batched([launch.kernel for launch in launches(graph, fuse_expansions)], batch)


def launches(graph: Graph, fuse_expansions: bool = False) -> list[Launch]:
    """Return the launches of a graph in an order in which they can run.

    A launch consists of ops along a chain of which nothing else reads the intermediate results, so
    the operands of its epilogue cannot depend on it. In the order of their last ops, every launch
    comes after the launches whose results it reads.

    Raises:
        ValueError: see `kernels`.
    """
    is_fused = bytearray(len(graph.ops))
    unsorted = [
        _launch(graph, index, is_fused)
        for index, op in enumerate(graph.ops)
        if not is_fused[index]
        and op.kind != "input"
        and (op.kind != "slice" or not graph.consumers[index])
    ]
    if fuse_expansions:
        unsorted = _fuse_expansions(graph, unsorted)
    # The anchors of launches can be in another order than their last ops.
    unsorted.sort(key=_result)
    return unsorted


def add_kernel(ops: list[Op], kernel: Kernel, sources: Sequence[int], slot: str) -> int:
    """Append the ops that a kernel computes to those of a graph.

    Args:
        ops: ops of the graph.
        kernel: the kernel; it has no expansion, and converts no layout and no dtype.
        sources: positions of the ops that compute its operands; a range of channels is a slice.
        slot: name of its weights.

    Returns:
        Position of the op that computes its result.
    """
    count, shape = len(kernel.inputs), kernel.output
    result, others = sources[0], iter(sources[count:])

    def add(kind: str, inputs: tuple[int, ...], **settings: Any) -> int:
        ops.append(Op(kind, inputs, shape, **settings))
        return len(ops) - 1

    if kind := _ANCHORS.get(kernel.kind):
        settings = {
            "kernel": kernel.kernel,
            "stride": kernel.stride,
            "padding": kernel.padding,
            "groups": kernel.groups,
            "bias": kernel.has_bias,
            "slot": weight_slot(slot, shape[0]) if kernel.has_weights else None,
        }
        result = add(kind, tuple(sources[:count]), **settings)
    for step in kernel.epilogue:
        kind, _, _ = step.partition(":")
        if kind in ("add", "multiply"):
            result = add(kind, (result, next(others)))
        elif kind in ACTIVATIONS:
            result = add(kind, (result,))
        elif kind != "bias":
            result = add("shuffle", (result,), groups=kernel.shuffle_groups)
    return result


def kernel_of_op(
    kind: str, operands: Sequence[Operand], op: Op, epilogue: Sequence[str] = (), **layout: Any
) -> Kernel:
    """Return the kernel of this kind that has the window and the result of an op.

    Args:
        kind: kind of the kernel.
        operands: what it reads.
        op: the op.
        epilogue: steps that are fused into it.
        layout: further fields of `Kernel`, such as `dtype`.
    """
    return interned_kernel(
        kind,
        tuple(operands),
        op.shape,
        *((op.kernel, op.stride, op.padding) if kind in WINDOW_KINDS else (1, 1, 0)),
        op.groups if kind == "conv2d" else 1,
        tuple(epilogue),
        **layout,
    )


def weight_slot(name: str, channels: int) -> Slot:
    """Return the slot of an op that no search space has."""
    return Slot(name, Channels.prefix(channels, channels))


def _launch(graph: Graph, index: int, is_fused: bytearray) -> Launch:
    """Return the launch whose anchor is op `index`, and mark the ops that it takes."""
    ops = graph.ops
    op = ops[index]
    anchor = KERNEL_KINDS.get(op.kind, "copy")
    epilogue: list[str] = []
    epilogue_sources: list[int] = []
    inputs = op.inputs
    if anchor == "copy":
        inputs = op.inputs[:1] if op.kind != "slice" else (index,)
        if op.kind != "slice":
            epilogue.append(_first_step(ops, op))
            epilogue_sources += op.inputs[1:]
    elif op.bias:
        epilogue.append("bias")
    end = _fuse_followers(graph, index, is_fused, epilogue, epilogue_sources)
    operands, sources = zip(*[_operand(ops, source) for source in inputs], strict=True)
    kernel = kernel_of_op(anchor, operands, op, epilogue)
    if epilogue_sources:
        sources += tuple([_operand(ops, source)[1] for source in epilogue_sources])
    slot = op.slot.name if op.slot and kernel.has_weights else ""
    return Launch(kernel, sources, end, slot)


def _fuse_expansions(graph: Graph, separate: list[Launch]) -> list[Launch]:
    """Return the launches after fusing 1x1 convolutions into depthwise ones where possible."""
    by_result = {launch.result: launch for launch in separate}
    fused_results: set[int] = set()
    launches = []
    for launch in separate:
        before = by_result.get(launch.sources[0])
        if before is not None and _can_expand(graph, before, launch):
            fused_results.add(before.result)
            launch = _expanded(before, launch)
        launches.append(launch)
    return [launch for launch in launches if launch.result not in fused_results]


def _can_expand(graph: Graph, before: Launch, launch: Launch) -> bool:
    """Return whether `launch` can take `before` as its expansion."""
    expansion, depthwise = before.kernel, launch.kernel
    return (
        depthwise.is_depthwise
        and len(depthwise.inputs) == 1
        and expansion.kind == "conv2d"
        and (expansion.kernel, expansion.stride, expansion.groups) == (1, 1, 1)
        and expansion.has_bias
        and not expansion.epilogue_operands
        and len(graph.consumers[before.result]) == 1
        and depthwise.inputs[0] == interned_operand(expansion.output)
        and _block_name(before.slot) == _block_name(launch.slot)
    )


def _block_name(slot: str) -> str:
    """Return the block of a slot: kernels do not extend from one block into the next."""
    return slot.rpartition(".")[0]


def _expanded(before: Launch, launch: Launch) -> Launch:
    """Return the launch of a depthwise convolution with `before` as its expansion."""
    depthwise = launch.kernel
    kernel = interned_kernel(
        depthwise.kind,
        before.kernel.inputs,
        depthwise.output,
        depthwise.kernel,
        depthwise.stride,
        depthwise.padding,
        depthwise.groups,
        depthwise.epilogue,
        expansion=before.kernel.epilogue,
    )
    sources = before.sources + launch.sources[1:]
    return Launch(kernel, sources, launch.result, launch.slot, before.slot)


def _fuse_followers(
    graph: Graph,
    index: int,
    is_fused: bytearray,
    epilogue: list[str],
    epilogue_sources: list[int],
) -> int:
    """Fuse the ops after the anchor `index` into its epilogue.

    Args:
        graph: the graph.
        index: index of the anchor.
        is_fused: flag of each op; set for the ops that are fused.
        epilogue: steps of the epilogue, to which the new steps are appended.
        epilogue_sources: indices of the ops that the epilogue reads, to which new ones are
            appended.

    Returns:
        Index of the last op that is fused, or of the anchor.
    """
    ops, consumers = graph.ops, graph.consumers
    kind, end = ops[index].kind, index
    while len(consumers[end]) == 1:
        follower = consumers[end][0]
        op = ops[follower]
        if op.kind in ACTIVATIONS:
            epilogue.append(op.kind)
        elif op.kind == "norm" and kind == "conv" and end == index:
            if not ops[index].bias:
                epilogue.append("bias")
        elif op.kind == "shuffle" and kind == "concat" and end == index:
            epilogue.append(f"shuffle{op.groups}")
        elif op.kind == "add" and _takes_addition(ops, consumers, end, op):
            (other,) = (source for source in op.inputs if source != end)
            epilogue.append(_joining_step(ops, op, other))
            epilogue_sources.append(other)
        elif op.kind == "multiply" and op.inputs[0] == end:
            epilogue.append(_joining_step(ops, op, op.inputs[1]))
            epilogue_sources.append(op.inputs[1])
        else:
            break
        is_fused[follower] = True
        end = follower
    return end


def _takes_addition(
    ops: Sequence[Op], consumers: Sequence[tuple[int, ...]], end: int, addition: Op
) -> bool:
    """Return whether the launch that ends at `end` takes the addition.

    If several launches could take the addition, the launch that ends last takes it.
    """
    candidates = [
        source
        for source in addition.inputs
        if len(consumers[source]) == 1 and ops[source].kind not in ("input", "slice")
    ]
    return end == max(candidates)


def _first_step(ops: Sequence[Op], op: Op) -> str:
    """Return the epilogue step of an op that a copy starts with."""
    if op.kind == "shuffle":
        return f"shuffle{op.groups}"
    if op.kind in ACTIVATIONS:
        return op.kind
    if op.kind not in ("add", "multiply"):
        raise ValueError(f"no kernel starts with the op {op.kind}")
    return _joining_step(ops, op, op.inputs[-1])


def _joining_step(ops: Sequence[Op], op: Op, other: int) -> str:
    """Return the epilogue step of an addition or a multiplication.

    Args:
        ops: ops of the graph.
        op: the addition or multiplication.
        other: index of the op that is added or multiplied with.
    """
    return epilogue_step(op.kind, _operand(ops, other)[0], op.shape)


def _operand(ops: Sequence[Op], index: int) -> tuple[Operand, int]:
    """Return the operand that reads op `index`, and the op that holds the tensor behind slices."""
    op = ops[index]
    if op.kind != "slice":
        return interned_operand(op.shape), index
    start, stop = op.start, op.start + op.shape[0]
    index = op.inputs[0]
    while ops[index].kind == "slice":
        start, stop = start + ops[index].start, stop + ops[index].start
        index = ops[index].inputs[0]
    return Operand(ops[index].shape, start, stop), index
