"""Networks in torch: one interpreter of a `Graph`, for own weights and for shared weights.

`run_graph` executes the ops of a graph and asks a `Weights` object for the weights of every
convolution, linear layer and batch norm. A `Network` holds weights of its own (`to_torch` makes
one); a supernet (`nas.supernet`) returns slices of weights that all architectures share.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.module import _has_any_global_hook as has_global_hooks

from nas import graph as graphs
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
    layers: Callable[[int], nn.Module | None] = lambda position: None,
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
        layers: returns the module to call for a convolution, linear layer or activation at a
            position; None for an op that `weights` provides for.

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
        elif (layer := layers(position)) is None:
            output = _apply(op, inputs, weights, overwrite, graph.ops[source].shape)
        elif op.kind == "linear":
            output = layer(inputs[0].flatten(1))[:, :, None, None]
        else:
            output = layer(inputs[0])
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

        Args:
            op: the convolution or linear layer.
            shape: `C_out x C_in/groups x K x K`, or `C_out x C_in` for a linear layer.
            generator: source of the random weights; see `_initial_weight`.
        """
        leaf = _add_submodules(self, op.slot_name)
        leaf.register_parameter("weight", _initial_weight(op, shape, generator))
        if op.bias:
            leaf.register_parameter("bias", nn.Parameter(torch.zeros(shape[0])))

    def add_norm(self, op: Op, channels: int, *, scale: float) -> None:
        """Add the scale and shift of a batch norm.

        Args:
            op: the batch norm.
            channels: number of channels.
            scale: initial value of the scale; the shift starts at zero.
        """
        leaf = _add_submodules(self, op.slot_name)
        leaf.register_parameter("weight", nn.Parameter(torch.full((channels,), scale)))
        leaf.register_parameter("bias", nn.Parameter(torch.zeros(channels)))


def _initial_weight(op: Op, shape: tuple[int, ...], generator: torch.Generator) -> nn.Parameter:
    """Return the initial weight of a convolution or linear layer.

    It is normally distributed with variance `gain / fan_in` (He et al. 2015, "Delving deep into
    rectifiers"); the gain is 2 for a convolution, 1 for a linear layer.
    """
    fan_in = math.prod(shape[1:])
    gain = 2.0 if op.kind == "conv" else 1.0
    weight = torch.randn(shape, generator=generator) * math.sqrt(gain / fan_in)
    if len(shape) == 4:
        weight = weight.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(weight)


def _add_submodules(module: nn.Module, path: str) -> nn.Module:
    """Return the submodule at a dotted path, adding the modules that are missing on it."""
    for part in path.split(".") if path else ():
        if part not in dict(module.named_children()):
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module


class Activation(nn.Module):
    """An activation by its name in `nas.torch_kernels.ACTIVATIONS`, where torch has no module."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of each element."""
        return ACTIVATIONS[self.kind](x)

    def extra_repr(self) -> str:
        """Return the name."""
        return self.kind


_ACTIVATION_MODULES = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hard_swish": nn.Hardswish,
    "hard_sigmoid": nn.Hardsigmoid,
}
"""The modules that torch has for activations."""

_PLAIN_TYPES = frozenset([nn.Conv2d, nn.BatchNorm2d, Activation, *_ACTIVATION_MODULES.values()])
"""Types of modules in whose place the interpreter may compute the same in a faster way."""


class Network(nn.Module):
    """A network with weights of its own, for standalone training, folding and export.

    Its convolutions, linear layers, batch norms and activations are torch's modules, with the usual
    names of parameters. Their paths are the slots of the ops, but no module is inside of another
    one: the batch norm `stem.norm` behind the convolution `stem` is `stem_norm`, and the activation
    is `stem_relu`.

    Modules are called, so that hooks run and replaced modules take effect. The exception is a
    module of torch without hooks where `nas.torch_kernels` computes the same faster.

    Args:
        graph: the network's graph; every op with weights has its own slot.
        generator: source of the initial weights.

    Raises:
        ValueError: torch has no implementation of an activation.
    """

    def __init__(self, graph: Graph, generator: torch.Generator) -> None:
        super().__init__()
        self.graph = graph
        self._paths = _module_paths(graph)
        self._slot_paths = {
            graph.ops[at].slot_name: path for at, path in self._paths.items() if graph.ops[at].slot
        }
        silent = residual_norms(graph)
        for at, path in self._paths.items():
            op = graph.ops[at]
            parent, _, name = path.rpartition(".")
            scale = float(op.kind != "norm" or op.slot_name not in silent)
            layer = _make_module(graph, op, scale, generator)
            _add_submodules(self, parent).add_module(name, layer)
        self._activation_paths = {
            op.slot_name: self._paths[graph.consumers[at][0]]
            for at, op in enumerate(graph.ops)
            if _activation_behind(graph, at)
        }

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits `N x classes` of normalised images `N x C x H x W`."""
        return run_graph(self.graph, x, self, layers=self._layer).flatten(1)

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and statistics by slot: `<slot>.weight`, as `Supernet.extract` does.

        `load_state_dict` takes these names, too.
        """
        slots = {path: slot for slot, path in self._slot_paths.items()}
        named = {}
        for key, tensor in self.state_dict().items():
            path, _, name = key.rpartition(".")
            named[f"{slots[path]}.{name}"] = tensor
        return named

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what `state_dict` or `tensors` returned; see `torch.nn.Module.load_state_dict`."""
        state = OrderedDict[str, Any]()
        for key, tensor in state_dict.items():
            path, _, name = key.rpartition(".")
            state[f"{self._slot_paths.get(path, path)}.{name}"] = tensor
        # Without it, torch expects the number of batches that batch norms have seen.
        state._metadata = {  # type: ignore[attr-defined]
            path: {"version": nn.BatchNorm2d._version} for path in self._slot_paths.values()
        }
        return super().load_state_dict(state, strict, assign)

    def weight(self, op: Op) -> Tensor:
        """See `Weights`."""
        return self.slot_module(op).get_parameter("weight")

    def bias(self, op: Op) -> Tensor | None:
        """See `Weights`."""
        return self.slot_module(op).get_parameter("bias") if op.bias else None

    def norm(self, op: Op, x: Tensor, activation: str | None = None) -> Tensor:
        """See `Weights`. In training mode the running statistics are updated."""
        layers = [self.slot_module(op)]
        if activation:
            layers.append(self.get_submodule(self._activation_paths[op.slot_name]))
        norm = layers[0]
        if not all(map(_is_plain, layers)) or not isinstance(norm, nn.BatchNorm2d):
            for layer in layers:
                x = layer(x)
            return x
        arguments = norm.running_mean, norm.running_var, norm.weight, norm.bias
        if norm.training:
            return batch_norm(x, *arguments, norm.momentum or 0.0, norm.eps, activation)
        x = F.batch_norm(x, *arguments, False, 0.0, norm.eps)
        return _activate(activation, x, True) if activation else x

    def slot_module(self, op: Op) -> nn.Module:
        """Return the module with the parameters of an op."""
        return self.get_submodule(self._slot_paths[op.slot_name])

    def _layer(self, position: int) -> nn.Module | None:
        """Return the module that must be called for an op; see `run_graph`."""
        path = self._paths.get(position)
        if path is None:
            return None
        layer = self.get_submodule(path)
        return None if _has_kernels(self.graph, position) and _is_plain(layer) else layer


def _has_kernels(graph: Graph, position: int) -> bool:
    """Return whether the interpreter has a faster way for an op than torch's module."""
    op = graph.ops[position]
    is_depthwise = op.groups == op.shape[0] and op.groups > 1
    return op.kind in ACTIVATIONS or (op.kind == "conv" and (is_depthwise or _is_pointwise(op)))


def _is_plain(module: nn.Module) -> bool:
    """Return whether nobody would notice if something equal were computed in a module's place."""
    return (
        type(module) in _PLAIN_TYPES
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and "forward" not in vars(module)
        and not has_global_hooks()
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )


def _module_paths(graph: Graph) -> dict[int, str]:
    """Return the path of the module of each op that has one, by its position.

    No path leads through another module: tools take modules without submodules for layers.
    """
    slots = {op.slot_name for op in graph.ops if op.slot}
    paths: dict[int, str] = {}
    for at, op in enumerate(graph.ops):
        if op.slot:
            first, *parts = op.slot_name.split(".")
            path = slot = first
            for part in parts:
                path += f"{'_' if slot in slots else '.'}{part}"
                slot += f".{part}"
        elif op.kind in graphs.ACTIVATIONS:
            if op.kind not in ACTIVATIONS:
                raise ValueError(f"ops of kind {op.kind!r} have no implementation in torch")
            source = op.inputs[0]
            if graph.ops[source].kind == "norm":
                source = graph.ops[source].inputs[0]
            path = f"{paths[source]}_{op.kind}" if graph.ops[source].slot else f"{op.kind}_{at}"
        else:
            continue
        while path in paths.values():
            path += "_"
        paths[at] = path
    return paths


def _make_module(graph: Graph, op: Op, scale: float, generator: torch.Generator) -> nn.Module:
    """Return the initialised module of an op; a batch norm has this scale."""
    outputs = op.shape[0]
    if op.kind == "norm":
        norm = nn.BatchNorm2d(outputs, NORM_EPS, NORM_MOMENTUM)
        nn.init.constant_(norm.weight, scale)
        norm.num_batches_tracked = None
        return norm
    if op.kind not in WEIGHTED_KINDS:
        module = _ACTIVATION_MODULES.get(op.kind)
        return module() if module else Activation(op.kind)
    inputs = graph.input_channels(op)
    layer: nn.Conv2d | nn.Linear
    # On the meta device, torch draws no weights.
    if op.kind == "linear":
        layer = nn.Linear(inputs, outputs, op.bias, device="meta")
    else:
        window = op.kernel, op.stride, op.padding
        layer = nn.Conv2d(inputs, outputs, *window, groups=op.groups, bias=op.bias, device="meta")
    layer.weight = _initial_weight(op, tuple(layer.weight.shape), generator)
    if op.bias:
        layer.bias = nn.Parameter(torch.zeros(outputs))
    return layer


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
        A module of torch's modules, in training mode, that maps normalised images
        `N x C x H x W` to logits `N x classes`.
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
        state: the `tensors` of a `Network` of that graph.

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
    state = {key: tensor.detach().cpu() for key, tensor in network.tensors().items()}
    folded = fold_norms(network.graph, state)
    return {key: tensor.contiguous().numpy() for key, tensor in folded.items()}
