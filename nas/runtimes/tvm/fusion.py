"""How the TVM runtime splits a graph into kernels. Imports no TVM, so tables predict anywhere.

The rule is local: a convolution takes its bias, the activations and residual additions that read
nothing but it; a concatenation takes the channel shuffle behind it; a channel slice is a view that
its readers fold into their reads. A depthwise convolution takes the 1x1 convolution of its own
block that makes its input and nothing else, activations included. A squeeze-excite's gate is
applied by a pass of its own, since the tensor that it scales was also averaged to make it. So a
kernel never depends on anything beyond the neighbouring block, and a space's kernels can be listed
from its blocks alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from nas.documents import shortened
from nas.graph import ACTIVATIONS, Graph, Op
from nas.latency import cache_model
from nas.latency.kernel import (
    WINDOW_KINDS,
    Kernel,
    Operand,
    batched,
    shared_kernel,
    step_for,
    whole_operand,
)

__all__ = [
    "BY_PIECE",
    "DISPATCH_PARTS",
    "Launch",
    "kernels",
    "launches",
    "packed_bytes",
    "predicted_us",
]

_KIND = {
    "conv": "conv2d",
    "linear": "linear",
    "max_pool": "max_pool",
    "avg_pool": "avg_pool",
    "global_pool": "global_pool",
    "concat": "concat",
}


DISPATCH_PARTS = (
    "launch",
    "invocation",
    cache_model.LARGE_LAUNCH,
    *(part for parts in cache_model.PARTS_BY_PACE for part in parts),
)
"""What a prediction needs to know beside the kernels; see `nas.latency.cache_model`."""

BY_PIECE = True
"""No kernel reaches from one block into the next, so `Graph.pieces` split one by one."""

MAX_WINOGRAD_TILE = 64
"""Largest tile in a schedule; rounding spoils the results of far smaller ones already."""

_result = attrgetter("result")


def packed_bytes(kernel: Kernel, schedule: Mapping[str, Any]) -> int:
    """Of a kernel's weights as its code reads them: Winograd's transforms make more of them.

    `m x m` outputs of a 3x3 window take `(m + 2) x (m + 2)` numbers instead of nine (Lavin and Gray
    2016, "Fast algorithms for convolutional neural networks").

    Raises ValueError for a schedule with no such `m`.
    """
    m = schedule.get("winograd")
    if m is None:
        return kernel.weight_bytes
    if type(m) is not int or not 0 < m <= MAX_WINOGRAD_TILE:
        raise ValueError(f"winograd is {shortened(m)}, not the size of a tile")
    return kernel.weight_bytes * (m + 2) ** 2 // 9


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


def kernels(graph: Graph, batch: int = 1) -> list[Kernel]:
    """The kernels of a graph in launch order; `graph` and `graph.folded` give the same.

    How many images run at once changes nothing about how they split.
    """
    return batched([launch.kernel for launch in launches(graph)], batch)


def predicted_us(kernels_us: Sequence[float], dispatch_us: Mapping[str, float]) -> float:
    """Latency of a network: the VM is entered once, and launches one kernel after the other.

    Args:
        kernels_us: latency of each kernel.
        dispatch_us: cost of an `invocation` of the VM, and of one `launch`.
    """
    return sum(kernels_us) + len(kernels_us) * dispatch_us["launch"] + dispatch_us["invocation"]


def launches(graph: Graph) -> list[Launch]:
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
        raise ValueError(f"the TVM runtime has no kernel for a {op.kind} on its own")
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
