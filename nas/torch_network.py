"""Runs a `Graph` in torch: one interpreter, whoever owns the weights.

`run` executes the ops and asks a `Weights` for every convolution, linear layer and norm. A
`Network` is a graph with weights of its own; a supernet (`nas.supernet`) answers the same questions
with slices of shared weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nas.graph import Graph, Op, Slot

NORM_EPS = 1e-5
"""Added to the variance by every batch norm, here and where one is folded."""

NORM_MOMENTUM = 0.1
"""Share of the newest batch in a standalone network's running statistics."""

_FRESH = frozenset({"conv", "norm", "add", "multiply"})
"""Ops whose output is a new tensor that nothing needs again for the backward pass.

A multiplication's, like a convolution's, needs what went in, not what came out.
"""

_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
}


class Weights(Protocol):
    """What `run` asks for. `op.slot` says where the weights are kept."""

    def weight(self, op: Op) -> Tensor:
        """Of a convolution `out x in/groups x kernel x kernel`, of a linear layer `out x in`."""
        ...

    def bias(self, op: Op) -> Tensor | None:
        """`out` values, or None for an op without a bias."""
        ...

    def norm(self, op: Op, x: Tensor) -> Tensor:
        """`x` (`batch x channels x height x width`), batch-normalised."""
        ...


def run(graph: Graph, x: Tensor, weights: Weights) -> Tensor:
    """Runs a graph on a batch `batch x channels x height x width`; so is the output.

    A vector comes out as `batch x features x 1 x 1`. Images of another size than the graph's are
    scaled to it. Tensors are channels-last in memory, which is several times faster on a CPU, and
    are dropped after the last op that reads them.
    """
    size = graph.input_shape[1:]
    if x.shape[2:] != size:
        x = F.interpolate(x, size, mode="bilinear", antialias=True)
    values: dict[int, Tensor] = {0: x.contiguous(memory_format=torch.channels_last)}
    for position, op in enumerate(graph.ops):
        if op.kind == "input":
            continue
        inputs = [values[source] for source in op.inputs]
        source = op.inputs[0]
        overwrite = graph.ops[source].kind in _FRESH and len(graph.consumers[source]) == 1
        values[position] = _apply(op, inputs, weights, overwrite)
        for source in set(op.inputs):
            if graph.consumers[source][-1] == position:
                del values[source]
    return values[len(graph.ops) - 1]


def _apply(op: Op, inputs: list[Tensor], weights: Weights, overwrite: bool) -> Tensor:
    x = inputs[0]
    if op.kind in _ACTIVATIONS:
        return _activate(op.kind, x, overwrite)
    match op.kind:
        case "conv":
            return F.conv2d(
                x, weights.weight(op), weights.bias(op), op.stride, op.padding, 1, op.groups
            )
        case "linear":
            return F.linear(x.flatten(1), weights.weight(op), weights.bias(op))[:, :, None, None]
        case "norm":
            return weights.norm(op, x)
        case "add":
            return inputs[0] + inputs[1]
        case "multiply":
            return inputs[0] * inputs[1]
        case "concat":
            return torch.cat(inputs, dim=1)
        case "slice":
            return x[:, op.start : op.start + op.shape[0]]
        case "shuffle":
            return _shuffle(x, op.groups)
        case "max_pool":
            return F.max_pool2d(x, op.kernel, op.stride, op.padding, ceil_mode=_overhangs(op, x))
        case "avg_pool":
            return F.avg_pool2d(x, op.kernel, op.stride, op.padding, ceil_mode=_overhangs(op, x))
        case "global_pool":
            return x.mean((2, 3), keepdim=True)
    raise ValueError(f"torch has no implementation of the op kind {op.kind!r}")


def _activate(kind: str, x: Tensor, overwrite: bool) -> Tensor:
    """An activation, written over `x` where that saves work.

    The backward pass of a relu needs only its output. Those of the others need their input, which
    autograd copies before it is written over: in training that costs more than a new tensor.
    """
    inplace = overwrite and (kind == "relu" or not torch.is_grad_enabled())
    return _ACTIVATIONS[kind](x, inplace=inplace)


def _overhangs(op: Op, x: Tensor) -> bool:
    """Whether the last window of a pooling reaches beyond the padding."""
    fitting = [(size + 2 * op.padding - op.kernel) // op.stride + 1 for size in x.shape[2:]]
    return fitting != list(op.shape[1:])


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """ShuffleNet's channel shuffle, written so that the tensor stays channels-last."""
    n, c, h, w = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(n, h, w, groups, c // groups)
    return parts.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)


class SlotModule(nn.Module):
    """A module whose parameters are called by slot: `<slot>.weight`, `<slot>.bias`."""

    def add_weight(self, op: Op, shape: tuple[int, ...], generator: torch.Generator) -> None:
        """Adds the weight and bias of a convolution or linear layer, initialised.

        Normal with variance `gain / fan-in` (He et al. 2015): gain 2 before a rectifier, 1 for a
        linear layer; biases are zero.
        """
        fan_in = math.prod(shape[1:])
        gain = 2.0 if op.kind == "conv" else 1.0
        weight = torch.randn(shape, generator=generator) * math.sqrt(gain / fan_in)
        if len(shape) == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        leaf = self._leaf(slot_of(op).name)
        leaf.register_parameter("weight", nn.Parameter(weight))
        if op.bias:
            leaf.register_parameter("bias", nn.Parameter(torch.zeros(shape[0])))

    def add_norm(self, op: Op, channels: int, *, scale: float, statistics: bool) -> None:
        """Adds scale and shift of a batch norm, with running statistics if asked for."""
        leaf = self._leaf(slot_of(op).name)
        leaf.register_parameter("weight", nn.Parameter(torch.full((channels,), scale)))
        leaf.register_parameter("bias", nn.Parameter(torch.zeros(channels)))
        if statistics:
            leaf.register_buffer("running_mean", torch.zeros(channels))
            leaf.register_buffer("running_var", torch.ones(channels))

    def _leaf(self, path: str) -> nn.Module:
        module: nn.Module = self
        for part in path.split("."):
            children = dict(module.named_children())
            if part not in children:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        return module


class Network(SlotModule):
    """A graph with weights of its own: for training alone, folding and export.

    Args:
        graph: what to run; every weighted op has a slot of its own.
        generator: draws the initial weights.
    """

    def __init__(self, graph: Graph, generator: torch.Generator) -> None:
        super().__init__()
        self.graph = graph
        silent = residual_norms(graph)
        for op in graph.ops:
            c = op.shape[0]
            if op.kind == "conv":
                inputs = graph.input_channels(op) // op.groups
                self.add_weight(op, (c, inputs, op.kernel, op.kernel), generator)
            elif op.kind == "linear":
                self.add_weight(op, (c, graph.input_channels(op)), generator)
            elif op.kind == "norm":
                scale = float(slot_of(op).name not in silent)
                self.add_norm(op, c, scale=scale, statistics=True)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `batch x classes` of normalised images `batch x channels x height x width`."""
        return run(self.graph, x, self).flatten(1)

    def weight(self, op: Op) -> Tensor:
        """See `Weights`."""
        return self.get_parameter(f"{slot_of(op).name}.weight")

    def bias(self, op: Op) -> Tensor | None:
        """See `Weights`."""
        return self.get_parameter(f"{slot_of(op).name}.bias") if op.bias else None

    def norm(self, op: Op, x: Tensor) -> Tensor:
        """See `Weights`. In training mode it updates the running statistics."""
        name = slot_of(op).name
        return F.batch_norm(
            x,
            self.get_buffer(f"{name}.running_mean"),
            self.get_buffer(f"{name}.running_var"),
            self.get_parameter(f"{name}.weight"),
            self.get_parameter(f"{name}.bias"),
            self.training,
            NORM_MOMENTUM,
            NORM_EPS,
        )


def residual_norms(graph: Graph) -> set[str]:
    """Slots of the norms that end a residual branch.

    Their scales start at zero, so that every residual block starts as the identity and deep
    networks train at large learning rates (Goyal et al. 2017, section 5.1). The branch is the
    newest operand of an addition; the other is what it is added to.
    """
    sources = {max(op.inputs) for op in graph.ops if op.kind == "add"}
    return {slot_of(graph.ops[at]).name for at in sources if graph.ops[at].kind == "norm"}


def slot_of(op: Op) -> Slot:
    """The slot of a weighted op. Raises ValueError for an op without one."""
    if op.slot is None:
        raise ValueError(f"an op of kind {op.kind!r} has no slot")
    return op.slot


class FoldedWeights:
    """The weights of `graph.folded`: by slot name, and `<slot>.bias`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def weight(self, op: Op) -> Tensor:
        """See `Weights`."""
        return self._tensors[slot_of(op).name]

    def bias(self, op: Op) -> Tensor | None:
        """See `Weights`."""
        return self._tensors[f"{slot_of(op).name}.bias"] if op.bias else None

    def norm(self, op: Op, x: Tensor) -> Tensor:
        """Raises ValueError: a folded graph has no norms."""
        raise ValueError("a folded graph has no norms")


def fold(graph: Graph, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for `graph.folded` from the `state_dict` of a `Network` of `graph`.

    A norm behind a convolution scales its output channels and shifts them, so it becomes part of
    the weight and of a bias (Jacob et al. 2018, section 3.2). Computed in float64.

    Returns:
        float32 tensors by slot name (`out x in/groups x kernel x kernel`, linear `out x in`), and
        by `<slot>.bias` for every op of `graph.folded` that has a bias.
    """
    folded: dict[str, Tensor] = {}
    for op in graph.ops:
        if op.kind in ("conv", "linear"):
            name = slot_of(op).name
            folded[name] = state[f"{name}.weight"]
            if op.bias:
                folded[f"{name}.bias"] = state[f"{name}.bias"]
        elif op.kind == "norm":
            conv, norm = slot_of(graph.ops[op.inputs[0]]).name, slot_of(op).name
            mean = state[f"{norm}.running_mean"].double()
            scale = (state[f"{norm}.running_var"].double() + NORM_EPS).rsqrt()
            scale = scale * state[f"{norm}.weight"].double()
            bias = folded[f"{conv}.bias"].double() if f"{conv}.bias" in folded else 0.0
            shifted = (bias - mean) * scale + state[f"{norm}.bias"].double()
            weight = folded[conv].double() * scale[:, None, None, None]
            folded[conv], folded[f"{conv}.bias"] = weight.float(), shifted.float()
    return folded


def folded_weights(network: Network) -> dict[str, np.ndarray]:
    """`fold` of a network's own weights as float32 arrays, for runtimes and exporters."""
    state = {key: tensor.detach().cpu() for key, tensor in network.state_dict().items()}
    return {key: tensor.contiguous().numpy() for key, tensor in fold(network.graph, state).items()}
