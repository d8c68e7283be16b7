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
from typing import NamedTuple

from nas.graph import ACTIVATIONS, Graph, Op
from nas.latency.kernel import (
    WINDOW_KINDS,
    Kernel,
    Operand,
    batched,
    shared_kernel,
    step_for,
    whole_operand,
)

_KIND = {
    "conv": "conv2d",
    "linear": "linear",
    "max_pool": "max_pool",
    "avg_pool": "avg_pool",
    "global_pool": "global_pool",
    "concat": "concat",
}

_result = attrgetter("result")


class Launch(NamedTuple):
    """A kernel in its place in a network.

    Args:
        kernel: what runs.
        sources: for each of `kernel.operands`, the op whose output holds it (0 is the input).
        result: the op whose output it makes.
        slot: name of its weights; empty without any.
        expansion: name of its expansion's weights; empty without one.
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
    """The launches of a graph, in an order in which they can run.

    A launch takes ops along a chain whose links nothing else reads, so that what its epilogue reads
    cannot depend on it, and comes before its last op: in the order of their last ops, all that a
    launch reads was made before.

    Raises ValueError for an op that no kernel can start with, such as a norm on its own.
    """
    fused = bytearray(len(graph.ops))
    found = [
        _launch(graph, index, fused)
        for index, op in enumerate(graph.ops)
        if not fused[index]
        and op.kind != "input"
        and (op.kind != "slice" or not graph.consumers[index])
    ]
    if fuse_expansions:
        found = _with_expansions(graph, found)
    # A launch is due when its last op is; anchors can come in another order than last ops.
    found.sort(key=_result)
    return found


def _launch(graph: Graph, index: int, fused: bytearray) -> Launch:
    """The launch anchored at op `index`; marks the ops that it takes."""
    ops = graph.ops
    op = ops[index]
    anchor = _KIND.get(op.kind, "copy")
    epilogue: list[str] = []
    others: list[int] = []
    read = op.inputs
    if anchor == "copy":
        read = op.inputs[:1] if op.kind != "slice" else (index,)
        if op.kind != "slice":
            epilogue.append(_step(ops, op, op.inputs[-1]))
            others += op.inputs[1:]
    elif op.bias:
        epilogue.append("bias")
    end = _absorb(graph, index, fused, epilogue, others)
    operands, sources = zip(*[_view(ops, source) for source in read], strict=True)
    kernel = shared_kernel(
        anchor,
        operands,
        op.shape,
        *((op.kernel, op.stride, op.padding) if anchor in WINDOW_KINDS else (1, 1, 0)),
        op.groups if anchor == "conv2d" else 1,
        tuple(epilogue),
    )
    if others:
        sources += tuple([_view(ops, source)[1] for source in others])
    slot = op.slot.name if op.slot and kernel.has_weights else ""
    return Launch(kernel, sources, end, slot)


def _with_expansions(graph: Graph, found: list[Launch]) -> list[Launch]:
    """The launches, with 1x1 convolutions as expansions of depthwise ones where they can be."""
    makers = {launch.result: launch for launch in found}
    taken: set[int] = set()
    joined = []
    for launch in found:
        before = makers.get(launch.sources[0])
        if before is not None and _expands(graph, before, launch):
            taken.add(before.result)
            launch = _expanded(before, launch)
        joined.append(launch)
    return [launch for launch in joined if launch.result not in taken]


def _expands(graph: Graph, before: Launch, launch: Launch) -> bool:
    kernel, after = before.kernel, launch.kernel
    return (
        after.is_depthwise
        and len(after.inputs) == 1
        and kernel.kind == "conv2d"
        and (kernel.kernel, kernel.stride, kernel.groups) == (1, 1, 1)
        and kernel.has_bias
        and not kernel.epilogue_operands
        and len(graph.consumers[before.result]) == 1
        and after.inputs[0] == whole_operand(kernel.output)
        and _block(before.slot) == _block(launch.slot)
    )


def _block(slot: str) -> str:
    """The block that a slot belongs to: kernels do not reach from one into the next."""
    return slot.rpartition(".")[0]


def _expanded(before: Launch, launch: Launch) -> Launch:
    after = launch.kernel
    kernel = shared_kernel(
        after.kind,
        before.kernel.inputs,
        after.output,
        after.kernel,
        after.stride,
        after.padding,
        after.groups,
        after.epilogue,
        expansion=before.kernel.epilogue,
    )
    sources = before.sources + launch.sources[1:]
    return Launch(kernel, sources, launch.result, launch.slot, before.slot)


def _absorb(
    graph: Graph, index: int, fused: bytearray, epilogue: list[str], others: list[int]
) -> int:
    """Lets the anchor at `index` take the ops behind it; returns the last one it took.

    Adds to `epilogue`, and to `others` what its steps read beside the chain.
    """
    ops, consumers = graph.ops, graph.consumers
    kind, end = ops[index].kind, index
    while len(consumers[end]) == 1:
        follower = consumers[end][0]
        after = ops[follower]
        if after.kind in ACTIVATIONS:
            epilogue.append(after.kind)
        elif after.kind == "norm" and kind == "conv" and end == index:
            if not ops[index].bias:
                epilogue.append("bias")
        elif after.kind == "shuffle" and kind == "concat" and end == index:
            epilogue.append(f"shuffle{after.groups}")
        elif after.kind == "add" and _hosts_addition(ops, consumers, end, after):
            (other,) = (source for source in after.inputs if source != end)
            epilogue.append(_step(ops, after, other))
            others.append(other)
        elif after.kind == "multiply" and after.inputs[0] == end:
            epilogue.append(_step(ops, after, after.inputs[1]))
            others.append(after.inputs[1])
        else:
            break
        fused[follower] = True
        end = follower
    return end


def _hosts_addition(
    ops: Sequence[Op], consumers: Sequence[tuple[int, ...]], end: int, addition: Op
) -> bool:
    """Whether the launch that ends at `end` takes the addition: the newest able operand does."""
    able = [
        source
        for source in addition.inputs
        if len(consumers[source]) == 1 and ops[source].kind not in ("input", "slice")
    ]
    return end == max(able)


def _step(ops: Sequence[Op], op: Op, other: int) -> str:
    """The epilogue step of an op; `other` is what it adds or multiplies with."""
    if op.kind == "shuffle":
        return f"shuffle{op.groups}"
    if op.kind in ACTIVATIONS:
        return op.kind
    if op.kind not in ("add", "multiply"):
        raise ValueError(f"no kernel starts with the op {op.kind}")
    return step_for(op.kind, _view(ops, other)[0], op.shape)


def _view(ops: Sequence[Op], index: int) -> tuple[Operand, int]:
    """What reading op `index` reads, slices resolved, and the op that holds it."""
    op = ops[index]
    if op.kind != "slice":
        return whole_operand(op.shape), index
    start, stop = op.start, op.start + op.shape[0]
    index = op.inputs[0]
    while ops[index].kind == "slice":
        start, stop = start + ops[index].start, stop + ops[index].start
        index = ops[index].inputs[0]
    return Operand(ops[index].shape, start, stop), index
