"""`TorchSource`: a `Graph` as Python source, one plain `nn.Module` that needs torch alone."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


class _Step(NamedTuple):
    """A statement of `forward`: one op, or a layer with its norm and its activations.

    Attributes:
        positions: positions of its ops in the graph, in order.
        name: name of the layer, an attribute of the module; empty for an op without weights.
    """

    positions: tuple[int, ...]
    name: str


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
        for positions, name in self._layers:
            for index, at in enumerate(positions):
                op = self._graph.ops[at]
                path = name if len(positions) == 1 else f"{name}.{index}"
                for tensor in _tensors(op):
                    names[f"{op.slot_name}.{tensor}"] = f"{path}.{tensor}"
        return names

    @cached_property
    def class_source(self) -> str:
        """The source of the class. It needs `torch`, `nn` and `torch.nn.functional as F`."""
        c, h, w = self._graph.input_shape
        attributes = "".join(f"        {line}\n" for line in self._attributes())
        statements = "".join(f"        {line}\n" for line in self._statements())
        return f'''class Network(nn.Module):
    """Classify images of {c} x {h} x {w} pixels into {self._graph.output_shape[0]}."""

    def __init__(self) -> None:
        super().__init__()
{attributes}
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits `N x classes` of normalised images `N x C x H x W`."""
{statements}'''

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

    @cached_property
    def _steps(self) -> list[_Step]:
        graph, used = self._graph, set[str]()
        steps, written = [], {0}
        for start, op in enumerate(graph.ops):
            if start in written:
                continue
            positions, name = [start], ""
            if op.kind in WEIGHTED_KINDS:
                name = _attribute_name(op.slot_name, used)
                while len(readers := graph.consumers[positions[-1]]) == 1 and (
                    graph.ops[readers[0]].kind in ACTIVATIONS | {"norm"}
                ):
                    positions.append(readers[0])
            written.update(positions)
            steps.append(_Step(tuple(positions), name))
        return steps

    @property
    def _layers(self) -> list[_Step]:
        return [step for step in self._steps if step.name]

    # Attributes

    def _attributes(self) -> Iterator[str]:
        for positions, name in self._layers:
            modules = [self._module(self._graph.ops[at]) for at in positions]
            if len(modules) == 1:
                yield f"self.{name} = {modules[0]}"
            else:
                yield f"self.{name} = nn.Sequential("
                yield from (f"    {module}," for module in modules)
                yield ")"

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
        ops = self._graph.ops
        last_use = {
            source: number
            for number, step in enumerate(self._steps)
            for source in ops[step.positions[0]].inputs
        }
        tensors = _Variables()
        statements = []
        for number, (positions, name) in enumerate(self._steps):
            op = ops[positions[0]]
            expression, is_vector = self._expression(op, name, tensors)
            dead = {source for source in op.inputs if last_use[source] == number}
            statements.append(f"{tensors.assign(positions[-1], is_vector, dead)} = {expression}")
        return [*statements, f"return {tensors.vector(len(ops) - 1)}"]

    def _expression(self, op: Op, layer: str, tensors: _Variables) -> tuple[str, bool]:
        """Return the expression of a statement, and whether its value is a vector."""
        if op.kind == "linear":
            return f"self.{layer}({tensors.vector(op.inputs[0])})", True
        is_vector = op.kind in _BY_CHANNEL_KINDS and tensors.vectors.issuperset(op.inputs)
        inputs = [
            tensors.names[source] if is_vector else tensors.map(source) for source in op.inputs
        ]
        return self._applied(op, layer, inputs), is_vector

    def _applied(self, op: Op, layer: str, inputs: Sequence[str]) -> str:
        """Return the expression of an op that is no linear layer."""
        x = inputs[0]
        match op.kind:
            case "conv":
                return f"self.{layer}({x})"
            case "max_pool" | "avg_pool":
                return self._pool(op, x)
            case "global_pool":
                return f"{x}.mean((2, 3), keepdim=True)"
            case "shuffle":
                return f"F.channel_shuffle({x}, {op.groups})"
            case "add":
                return " + ".join(inputs)
            case "multiply":
                return " * ".join(inputs)
            case "concat":
                return f"torch.cat([{', '.join(inputs)}], dim=1)"
            case "slice":
                return f"{x}[:, {op.start}:{op.start + op.shape[0]}]"
        return f"{_activation(op)[1]}({x})"

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
