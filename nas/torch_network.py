"""Networks in torch: one interpreter of a `Graph`, for own weights and for shared weights.

`run_graph` executes the ops of a graph and asks a `Weights` object for the weights of every
convolution, linear layer and batch norm. A `Network` holds weights of its own (`to_torch` makes
one); a supernet (`nas.supernet`) returns slices of weights that all architectures share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nas.graph import WEIGHTED_KINDS, Graph, Op, Shape
from nas.space import Architecture
from nas.torch_kernels import ACTIVATIONS, batch_norm, depthwise_conv, pointwise_conv

NORM_EPS = 1e-5
"""Epsilon that batch norms add to the variance; PyTorch's default."""

NORM_MOMENTUM = 0.1
"""Weight of the newest batch in the running statistics of a `Network`; PyTorch's default."""

_OVERWRITABLE_KINDS = frozenset({"conv", "norm", "add", "multiply"})
"""Kinds of ops whose output an activation may overwrite.

The output is a new tensor, and the backward pass of these ops needs their inputs only.
"""


class Weights(Protocol):
    """Provider of the weights of a graph's ops. `op.slot` names the weights of an op."""

    def weight(self, op: Op) -> Tensor:
        """Return the weight of an op.

        Its shape is `C_out x C_in/groups x K x K` for a convolution and `C_out x C_in` for a
        linear layer.
        """
        ...

    def bias(self, op: Op) -> Tensor | None:
        """Return the bias `C_out` of a convolution or linear layer, or None if it has no bias."""
        ...

    def norm(self, op: Op, x: Tensor, activation: str | None = None) -> Tensor:
        """Return the batch-normalised `x` (`N x C x H x W`), with an activation behind it."""
        ...


def run_graph(
    graph: Graph,
    x: Tensor,
    weights: Weights,
    transform: Callable[[int, Tensor], Tensor] | None = None,
    *,
    size: tuple[int, ...] | None = None,
) -> Tensor:
    """Run a graph on a batch of images.

    Intermediate tensors are channels-last in memory on a CPU, where that is several times faster.
    They are freed after the last op that reads them. A batch norm and an activation behind it are
    one step, unless there is a `transform`.

    Args:
        graph: the graph to run.
        x: images `N x C x H x W`; images of another size are resized.
        weights: provider of the weights of each op.
        transform: function of the position and the output of an op that returns what the ops behind
            it read; it is called for the images, too. None changes nothing.
        size: height and width of the images that the graph runs on; those of its input by default.

    Returns:
        The output of the last op, `N x C x H x W`; a linear layer gives `N x C x 1 x 1`.

    Raises:
        ValueError: the graph has an op of an unknown kind.
    """
    x = resize(x, size or graph.input_shape[1:])
    x = x.contiguous(memory_format=torch.contiguous_format if x.is_cuda else torch.channels_last)
    values: dict[int, Tensor] = {0: transform(0, x) if transform else x}
    for position, op in enumerate(graph.ops):
        if op.kind == "input":
            continue
        inputs = [values[source] for source in op.inputs]
        source = op.inputs[0]
        overwrite = (
            graph.ops[source].kind in _OVERWRITABLE_KINDS and len(graph.consumers[source]) == 1
        )
        if op.kind == "norm":
            activation = None if transform else _activation_behind(graph, position)
            output = weights.norm(op, inputs[0], activation)
        elif op.kind in ACTIVATIONS and not transform and _activation_behind(graph, source):
            output = inputs[0]
        else:
            output = _apply(op, inputs, weights, overwrite, graph.ops[source].shape)
        values[position] = transform(position, output) if transform else output
        for source in set(op.inputs):
            if graph.consumers[source][-1] == position:
                del values[source]
    return values[len(graph.ops) - 1]


def _is_pointwise(op: Op) -> bool:
    """Return whether a convolution computes each pixel from the same pixel of all channels."""
    return op.kernel == op.stride == op.groups == 1 and op.padding == 0


def resize(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return images `N x C x H x W` resized to a height and width."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def _apply(
    op: Op, inputs: list[Tensor], weights: Weights, overwrite: bool, input_shape: Shape
) -> Tensor:
    x = inputs[0]
    if op.kind in ACTIVATIONS:
        return _activate(op.kind, x, overwrite)
    match op.kind:
        case "conv" if op.groups == op.shape[0] == x.shape[1] and not op.bias:
            return depthwise_conv(x, weights.weight(op), op.stride, op.padding)
        case "conv" if x.is_cuda and _is_pointwise(op):
            return pointwise_conv(x, weights.weight(op), weights.bias(op))
        case "conv":
            return F.conv2d(
                x, weights.weight(op), weights.bias(op), op.stride, op.padding, 1, op.groups
            )
        case "linear":
            return F.linear(x.flatten(1), weights.weight(op), weights.bias(op))[:, :, None, None]
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
            ceil_mode = op.overhangs(*input_shape[1:])
            return F.max_pool2d(x, op.kernel, op.stride, op.padding, ceil_mode=ceil_mode)
        case "avg_pool":
            ceil_mode = op.overhangs(*input_shape[1:])
            return F.avg_pool2d(x, op.kernel, op.stride, op.padding, ceil_mode=ceil_mode)
        case "global_pool":
            return x.mean((2, 3), keepdim=True)
    raise ValueError(f"ops of kind {op.kind!r} have no implementation in torch")


def _activate(kind: str, x: Tensor, overwrite: bool) -> Tensor:
    """Apply an activation, in place where `x` may be overwritten and that saves time.

    The backward pass of a ReLU needs only its output. The other activations need their input, which
    autograd would copy before overwriting it; in training that costs more than a new tensor.
    """
    inplace = overwrite and (kind == "relu" or not torch.is_grad_enabled())
    return ACTIVATIONS[kind](x, inplace=inplace)


def _activation_behind(graph: Graph, position: int) -> str | None:
    """Return the activation that alone reads the norm at a position; None if there is none."""
    readers = graph.consumers[position]
    if graph.ops[position].kind != "norm" or len(readers) != 1:
        return None
    kind = graph.ops[readers[0]].kind
    return kind if kind in ACTIVATIONS else None


def _shuffle(x: Tensor, groups: int) -> Tensor:
    """Shuffle channels as ShuffleNet does, keeping the tensor `N x C x H x W` channels-last."""
    n, c, h, w = x.shape
    parts = x.permute(0, 2, 3, 1).reshape(n, h, w, groups, c // groups)
    return parts.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)


class SlotModule(nn.Module):
    """Module whose parameters are named by slot: `<slot>.weight` and `<slot>.bias`."""

    def add_weight(self, op: Op, shape: tuple[int, ...], generator: torch.Generator) -> None:
        """Add the initialised weight and bias of a convolution or linear layer.

        Weights are normally distributed with variance `gain / fan_in` (He et al. 2015, "Delving
        deep into rectifiers"); the gain is 2 for a convolution, 1 for a linear layer. Biases are
        zero.

        Args:
            op: the convolution or linear layer.
            shape: `C_out x C_in/groups x K x K`, or `C_out x C_in` for a linear layer.
            generator: source of the random weights.
        """
        fan_in = math.prod(shape[1:])
        gain = 2.0 if op.kind == "conv" else 1.0
        weight = torch.randn(shape, generator=generator) * math.sqrt(gain / fan_in)
        if len(shape) == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        leaf = self._add_submodules(op.slot_name)
        leaf.register_parameter("weight", nn.Parameter(weight))
        if op.bias:
            leaf.register_parameter("bias", nn.Parameter(torch.zeros(shape[0])))

    def add_norm(self, op: Op, channels: int, *, scale: float, statistics: bool) -> None:
        """Add the scale and shift of a batch norm.

        Args:
            op: the batch norm.
            channels: number of channels.
            scale: initial value of the scale; the shift starts at zero.
            statistics: whether to add the buffers `running_mean` and `running_var`.
        """
        leaf = self._add_submodules(op.slot_name)
        leaf.register_parameter("weight", nn.Parameter(torch.full((channels,), scale)))
        leaf.register_parameter("bias", nn.Parameter(torch.zeros(channels)))
        if statistics:
            leaf.register_buffer("running_mean", torch.zeros(channels))
            leaf.register_buffer("running_var", torch.ones(channels))

    def _add_submodules(self, path: str) -> nn.Module:
        """Return the submodule at a dotted path, adding the modules that are missing on it."""
        module: nn.Module = self
        for part in path.split("."):
            children = dict(module.named_children())
            if part not in children:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        return module


class Network(SlotModule):
    """A network with weights of its own, for standalone training, folding and export.

    Args:
        graph: the network's graph; every op with weights has its own slot.
        generator: source of the initial weights.
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
                scale = float(op.slot_name not in silent)
                self.add_norm(op, c, scale=scale, statistics=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `N x classes` of normalised images `N x C x H x W`."""
        return run_graph(self.graph, x, self).flatten(1)

    def weight(self, op: Op) -> Tensor:
        """See `Weights`."""
        return self.get_parameter(f"{op.slot_name}.weight")

    def bias(self, op: Op) -> Tensor | None:
        """See `Weights`."""
        return self.get_parameter(f"{op.slot_name}.bias") if op.bias else None

    def norm(self, op: Op, x: Tensor, activation: str | None = None) -> Tensor:
        """See `Weights`. In training mode the running statistics are updated."""
        name = op.slot_name
        mean, variance = (self.get_buffer(f"{name}.running_{each}") for each in ("mean", "var"))
        scale, shift = (self.get_parameter(f"{name}.{each}") for each in ("weight", "bias"))
        if self.training:
            return batch_norm(x, mean, variance, scale, shift, NORM_MOMENTUM, NORM_EPS, activation)
        x = F.batch_norm(x, mean, variance, scale, shift, False, NORM_MOMENTUM, NORM_EPS)
        return _activate(activation, x, True) if activation else x


def to_torch(network: Architecture | Graph, *, seed: int = 0) -> Network:
    """Return a network as a torch module with newly initialised weights of its own.

    Example:
        >>> space = nas.space.load_space("mobilenet", image_size=32)
        >>> model = to_torch(space.largest)
        >>> model(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8, 10])

    Args:
        network: an architecture, or its graph.
        seed: seed of the initial weights.

    Returns:
        A module in training mode that maps normalised images `N x C x H x W` to logits
        `N x classes`.
    """
    graph = network.graph if isinstance(network, Architecture) else network
    return Network(graph, torch.Generator().manual_seed(seed))


def residual_norms(graph: Graph) -> set[str]:
    """Return the slot names of the batch norms that end a residual branch.

    Their scales start at zero, so that every residual block starts as the identity and deep
    networks train at large learning rates (Goyal et al. 2017, section 5.1). Of the two operands of
    an addition the branch is the one that was computed later.
    """
    sources = {max(op.inputs) for op in graph.ops if op.kind == "add"}
    return {graph.ops[at].slot_name for at in sources if graph.ops[at].kind == "norm"}


class FoldedWeights:
    """Weights of a folded graph (`Graph.folded`).

    Args:
        tensors: weights by slot name and biases by `<slot>.bias`, as `fold_norms` returns them.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def weight(self, op: Op) -> Tensor:
        """See `Weights`."""
        return self._tensors[op.slot_name]

    def bias(self, op: Op) -> Tensor | None:
        """See `Weights`."""
        return self._tensors[f"{op.slot_name}.bias"] if op.bias else None

    def norm(self, op: Op, x: Tensor, activation: str | None = None) -> Tensor:
        """Raise ValueError, because a folded graph has no batch norms."""
        raise ValueError("a folded graph has no batch norms")


def fold_norms(graph: Graph, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of `graph.folded`, with the batch norms folded into the convolutions.

    A batch norm behind a convolution scales and shifts its output channels, so that it can become
    part of the weight and of a bias (Jacob et al. 2018, "Quantization and training of neural
    networks", section 3.2). The arithmetic is float64.

    Args:
        graph: the graph with its batch norms.
        state: the `state_dict` of a `Network` of that graph.

    Returns:
        float32 tensors: the weights by slot name (`C_out x C_in/groups x K x K`, linear layers
        `C_out x C_in`), and the biases `C_out` by `<slot>.bias`.
    """
    folded: dict[str, Tensor] = {}
    for op in graph.ops:
        if op.kind in WEIGHTED_KINDS:
            name = op.slot_name
            folded[name] = state[f"{name}.weight"]
            if op.bias:
                folded[f"{name}.bias"] = state[f"{name}.bias"]
        elif op.kind == "norm":
            conv, norm = graph.ops[op.inputs[0]].slot_name, op.slot_name
            mean = state[f"{norm}.running_mean"].double()
            scale = (state[f"{norm}.running_var"].double() + NORM_EPS).rsqrt()
            scale = scale * state[f"{norm}.weight"].double()
            bias = folded[f"{conv}.bias"].double() if f"{conv}.bias" in folded else 0.0
            shifted = (bias - mean) * scale + state[f"{norm}.bias"].double()
            weight = folded[conv].double() * scale[:, None, None, None]
            folded[conv], folded[f"{conv}.bias"] = weight.float(), shifted.float()
    return folded


def folded_weights(network: Network) -> dict[str, np.ndarray]:
    """Return the weights of `network.graph.folded` as float32 arrays, for runtimes and exporters.

    See `fold_norms` for the names and shapes.
    """
    state = {key: tensor.detach().cpu() for key, tensor in network.state_dict().items()}
    folded = fold_norms(network.graph, state)
    return {key: tensor.contiguous().numpy() for key, tensor in folded.items()}
