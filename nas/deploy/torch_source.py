"""`TorchSource`: a `Graph` as Python source, one plain `nn.Module` that needs torch alone."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import chain, count
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from nas.deploy.formats.base import missing_op
from nas.graph import ACTIVATIONS, WEIGHTED_KINDS, Graph, Op

if TYPE_CHECKING:
    from nas.deploy.model import TrainedModel

_ACTIVATIONS = {
    "relu": ("nn.ReLU()", "F.relu"),
    "relu6": ("nn.ReLU6()", "F.relu6"),
    "hard_swish": ("nn.Hardswish()", "F.hardswish"),
    "hard_sigmoid": ("nn.Hardsigmoid()", "F.hardsigmoid"),
}
"""Activations as a module and as a function."""

_MODULE_ATTRIBUTES = frozenset(dir(nn.Module()))
"""Attributes that every module has, so that no layer can have their names."""

_BY_CHANNEL_KINDS = ACTIVATIONS | {"add", "multiply", "concat", "slice"}
"""Kinds of ops that are written in the same way for maps and vectors."""


class _Layer(NamedTuple):
    """An attribute of the module: a convolution or linear layer, its norm and its activations.

    Attributes:
        name: name of the attribute.
        positions: positions of its ops in the graph, in order.
    """

    name: str
    positions: tuple[int, ...]

    def path(self, index: int) -> str:
        """Return the path of the submodule for the op with an index in `positions`."""
        return self.name if len(self.positions) == 1 else f"{self.name}.{index}"


class TorchSource:
    """The source of a class `Network`, a plain `nn.Module` that computes what a graph computes.

    Each convolution and linear layer is an attribute, named after its slot, together with the norm
    and the activations behind it. Parameters and buffers are named as in any `nn.Module`.

    Args:
        graph: the network, with its norms or folded.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    @cached_property
    def tensor_names(self) -> Mapping[str, str]:
        """Names of the module's tensors by their names in a `nas.torch_network.Network`."""
        names = {}
        for layer in self._layers.values():
            for index, at in enumerate(layer.positions):
                op = self._graph.ops[at]
                for tensor in _tensors(op):
                    names[f"{op.slot_name}.{tensor}"] = f"{layer.path(index)}.{tensor}"
        return names

    @cached_property
    def class_source(self) -> str:
        """The source of the class. It needs `torch`, `nn` and `torch.nn.functional as F`."""
        lines = ["class Network(nn.Module):"]
        lines += [f'    """{self._description}"""', ""]
        lines += ["    def __init__(self) -> None:", "        super().__init__()"]
        for layer in self._layers.values():
            lines += self._attribute(layer)
        lines += ["", "    def forward(self, x: torch.Tensor) -> torch.Tensor:"]
        lines += [f'        """{self._forward_description}"""']
        lines += [f"        {line}" for line in self._statements()]
        return "\n".join(lines) + "\n"

    def module(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Return the module with its tensors, in evaluation mode.

        Args:
            tensors: tensors by the names that a `nas.torch_network.Network` of the graph has.
        """
        header = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n\n\n"
        namespace: dict[str, Any] = {"__name__": "network"}
        exec(compile(header + self.class_source, "network.py", "exec"), namespace)
        network: nn.Module = namespace["Network"]()
        network.load_state_dict({name: tensors[key] for key, name in self.tensor_names.items()})
        return network.eval()

    @property
    def _description(self) -> str:
        c, h, w = self._graph.input_shape
        return f"Classify images of {c} x {h} x {w} pixels into {self._graph.output_shape[0]}."

    @property
    def _forward_description(self) -> str:
        return "Return the logits `N x classes` of normalised images `N x C x H x W`."

    # Attributes

    @cached_property
    def _layers(self) -> dict[int, _Layer]:
        """The layers by the position of their first op."""
        graph = self._graph
        layers: dict[int, _Layer] = {}
        used: set[str] = set()
        for start, op in enumerate(graph.ops):
            if op.kind not in WEIGHTED_KINDS:
                continue
            positions = [start]
            while len(readers := graph.consumers[positions[-1]]) == 1 and (
                graph.ops[readers[0]].kind in ACTIVATIONS | {"norm"}
            ):
                positions.append(readers[0])
            name = _attribute_name(op.slot_name, used)
            layers[start] = _Layer(name, tuple(positions))
        return layers

    def _attribute(self, layer: _Layer) -> list[str]:
        modules = [self._module(self._graph.ops[at]) for at in layer.positions]
        if len(modules) == 1:
            return [f"        self.{layer.name} = {modules[0]}"]
        return [
            f"        self.{layer.name} = nn.Sequential(",
            *[f"            {module}," for module in modules],
            "        )",
        ]

    def _module(self, op: Op) -> str:
        if op.kind in ACTIVATIONS:
            return _activation(op)[0]
        outputs = op.shape[0]
        if op.kind == "norm":
            return f"nn.BatchNorm2d({outputs})"
        inputs = self._graph.input_channels(op)
        if op.kind == "linear":
            return f"nn.Linear({inputs}, {outputs}{'' if op.bias else ', bias=False'})"
        options = {
            "stride": (op.stride, 1),
            "padding": (op.padding, 0),
            "groups": (op.groups, 1),
            "bias": (op.bias, True),
        }
        arguments = [f"{inputs}, {outputs}, {op.kernel}"]
        arguments += [f"{key}={value}" for key, (value, usual) in options.items() if value != usual]
        return f"nn.Conv2d({', '.join(arguments)})"

    # Statements of `forward`

    def _statements(self) -> list[str]:
        steps = self._steps()
        last_use = {
            source: step
            for step, (first, _) in enumerate(steps)
            for source in self._graph.ops[first].inputs
        }
        tensors = _Variables()
        statements = []
        for step, (first, result) in enumerate(steps):
            expression, is_vector = self._expression(first, tensors)
            inputs = set(self._graph.ops[first].inputs)
            dead = [source for source in inputs if last_use[source] == step]
            statements.append(f"{tensors.assign(result, is_vector, dead)} = {expression}")
        return [*statements, f"return {tensors.vector(len(self._graph.ops) - 1)}"]

    def _steps(self) -> list[tuple[int, int]]:
        """Return the positions of the first and the last op of each statement."""
        steps: list[tuple[int, int]] = []
        written = {0}
        for at in range(len(self._graph.ops)):
            if at not in written:
                positions = self._layers[at].positions if at in self._layers else (at,)
                written.update(positions)
                steps.append((positions[0], positions[-1]))
        return steps

    def _expression(self, at: int, tensors: _Variables) -> tuple[str, bool]:
        """Return the expression of a statement, and whether its value is a vector."""
        op = self._graph.ops[at]
        if op.kind == "linear":
            return f"self.{self._layers[at].name}({tensors.vector(op.inputs[0])})", True
        if op.kind in _BY_CHANNEL_KINDS and all(each in tensors.vectors for each in op.inputs):
            return _by_channel(op, [tensors.names[source] for source in op.inputs]), True
        return self._map_expression(at, [tensors.map(source) for source in op.inputs]), False

    def _map_expression(self, at: int, inputs: list[str]) -> str:
        op = self._graph.ops[at]
        match op.kind:
            case "conv":
                return f"self.{self._layers[at].name}({inputs[0]})"
            case "max_pool" | "avg_pool":
                return self._pool(op, inputs[0])
            case "global_pool":
                return f"{inputs[0]}.mean((2, 3), keepdim=True)"
            case "shuffle":
                return f"F.channel_shuffle({inputs[0]}, {op.groups})"
        return _by_channel(op, inputs)

    def _pool(self, op: Op, x: str) -> str:
        arguments = [x, str(op.kernel), f"stride={op.stride}"]
        if op.padding:
            arguments.append(f"padding={op.padding}")
        if op.overhangs(*self._graph.ops[op.inputs[0]].shape[1:]):
            arguments.append("ceil_mode=True")
        return f"F.{op.kind}2d({', '.join(arguments)})"


class _Variables:
    """The tensors of `forward` by the position of their op: names, and which are vectors.

    A vector is `N x C`, a map `N x C x H x W`.
    """

    def __init__(self) -> None:
        self.names: dict[int, str] = {0: "x"}
        self.vectors: set[int] = set()

    def map(self, at: int) -> str:
        """Return the expression of a tensor as a map."""
        return f"{self.names[at]}[:, :, None, None]" if at in self.vectors else self.names[at]

    def vector(self, at: int) -> str:
        """Return the expression of a tensor as a vector."""
        return self.names[at] if at in self.vectors else f"{self.names[at]}.flatten(1)"

    def assign(self, at: int, is_vector: bool, dead: Iterable[int]) -> str:
        """Name a new tensor like the first one that is not read again, or by the first free name.

        Args:
            at: position of the tensor's op.
            is_vector: whether the tensor is a vector.
            dead: positions of the tensors that are not read again.
        """
        for source in dead:
            del self.names[source]
        used = set(self.names.values())
        numbered = (f"x{number}" for number in count(1))
        self.names[at] = next(name for name in chain("xyz", numbered) if name not in used)
        if is_vector:
            self.vectors.add(at)
        return self.names[at]


def _tensors(op: Op) -> tuple[str, ...]:
    """Return the names of the parameters and buffers of an op."""
    match op.kind:
        case "conv" | "linear":
            return ("weight", "bias") if op.bias else ("weight",)
        case "norm":
            return ("weight", "bias", "running_mean", "running_var")
    return ()


def _by_channel(op: Op, inputs: Sequence[str]) -> str:
    """Return the expression of an op that torch applies to maps and vectors alike."""
    match op.kind:
        case "add":
            return " + ".join(inputs)
        case "multiply":
            return " * ".join(inputs)
        case "concat":
            return f"torch.cat([{', '.join(inputs)}], dim=1)"
        case "slice":
            return f"{inputs[0]}[:, {op.start}:{op.start + op.shape[0]}]"
    return f"{_activation(op)[1]}({inputs[0]})"


def _activation(op: Op) -> tuple[str, str]:
    """Return an activation as a module and as a function."""
    if op.kind not in _ACTIVATIONS:
        raise missing_op("torch", op)
    return _ACTIVATIONS[op.kind]


def _attribute_name(slot: str, used: set[str]) -> str:
    """Return a name for the layer of a slot that no other attribute has, and add it to `used`."""
    name = re.sub(r"\W", "_", slot)
    if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("__"):
        name = f"layer_{name}"
    while name in used or name in _MODULE_ATTRIBUTES:
        name += "_"
    used.add(name)
    return name


def folded_module(model: TrainedModel) -> nn.Module:
    """Return the network of a model with its norms folded, as a plain module for evaluation."""
    tensors = {
        name if name.endswith(".bias") else f"{name}.weight": torch.from_numpy(array)
        for name, array in model.weights.items()
    }
    return TorchSource(model.graph).module(tensors)
