"""State dicts in a file of weights, and the networks in them.

A state dict holds the layers of a network, and often more: counters, buffers of losses and metrics,
or a second network beside the first one. `layers_beside` and `modules` tell these apart by where
the tensors stand and by their shapes; their names matter for losses and metrics only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas.errors import WeightsError
from nas.files.documents import shortened
from nas.pretrained.layers import FileLayer
from nas.pretrained.torch_file import StandIn

MAX_WRAPPERS = 8
"""Most modules around a network, such as `model` or `module`."""

_LAYER_TENSORS = ("weight", "bias", "running_mean", "running_var")
"""Last parts of the names of tensors that layers have."""

_COUNTER = "num_batches_tracked"

_QUANTISED_NAMES = re.compile(r"(^|\.)(zero_point$|(_packed_params|weight_fake_quant)\b)")
"""Names of tensors in a quantised state dict of torch."""

_QUANTISED_DTYPES = (torch.int8, torch.uint8)

_OF_TRAINING = re.compile(r"loss|criterion|metric|(^|[._])acc(uracy)?($|[._])", re.IGNORECASE)
"""Names of modules that training has and the network does not run."""

_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|averaged?)(?![a-z])", re.IGNORECASE)
"""Names of entries and modules that hold averages of the weights of several training steps."""


class Problem(NamedTuple):
    """Why tensors of layers cannot be used, as a clause behind the file's path, and the remedy."""

    text: str
    remedy: str

    def error(self, path: Path) -> WeightsError:
        """Return the error for a file."""
        return WeightsError(f"{path}{self.text}", remedy=self.remedy)


@dataclass(frozen=True, eq=False)
class StateDict:
    """A mapping in a file that holds tensors by name.

    Attributes:
        path: keys that lead to it; empty if it is the whole file.
        names: names of all that it holds.
        groups: floating-point tensors by module, in the order of their first tensors.
        problem: the first reason why tensors of layers cannot be used; None if all can.
    """

    path: tuple[str, ...]
    names: Sequence[str]
    groups: Sequence[FileLayer]
    problem: Problem | None

    @property
    def entry(self) -> str:
        """The path as one text: `model.state_dict`."""
        return ".".join(self.path)

    @property
    def layers(self) -> list[FileLayer]:
        """The groups that are layers: a convolution, a linear layer or a norm."""
        return [each for each in self.groups if _is_layer(each)]


@dataclass(frozen=True, eq=False)
class Part:
    """The layers of a state dict that are in one module.

    Attributes:
        state: the state dict.
        module: path of the innermost module that holds all of them; empty for none.
        layers: the layers.
    """

    state: StateDict
    module: str
    layers: list[FileLayer]

    @property
    def is_averaged(self) -> bool:
        """Whether the weights are averages, by the names of the entry and the module."""
        return _AVERAGED.search(f"{self.state.entry}.{self.module}") is not None

    @property
    def name(self) -> str:
        """The path of the entry and the module, for messages."""
        return ".".join(filter(None, (self.state.entry, self.module)))

    def holds(self, name: str) -> bool:
        """Return whether a module or tensor with this name is in the module."""
        return not self.module or f"{name}.".startswith(f"{self.module}.")


def state_dict(path: tuple[str, ...], items: Mapping[Any, Any]) -> StateDict:
    """Return a state dict from the values of a mapping by name, tensors among them."""
    names, groups = [], dict[str, dict[str, Tensor]]()
    problem = None
    for key, value in items.items():
        if not isinstance(key, (str, int)):
            continue
        name = str(key)
        names.append(name)
        module, _, last = name.rpartition(".")
        problem = problem or _problem(name, last, value)
        if isinstance(value, Tensor) and value.is_floating_point():
            groups.setdefault(module, {})[last] = value
    return StateDict(path, names, [FileLayer(*each) for each in groups.items()], problem)


def _problem(name: str, last: str, value: Any) -> Problem | None:
    """Return why a tensor cannot be one of a layer; None if it can, or is none of a layer."""
    text = shortened(name)
    is_tensor = isinstance(value, Tensor)
    is_of_layer = last in _LAYER_TENSORS
    came = value.name if isinstance(value, StandIn) else type(value).__name__
    is_quantised = is_tensor and value.dtype in _QUANTISED_DTYPES and last == "weight"
    if _QUANTISED_NAMES.search(name) or came == "torch._utils._rebuild_qtensor" or is_quantised:
        return Problem(
            f" is quantised: {text} belongs to an int8 network.",
            "Give the float32 weights; int8 files are made by nas export.",
        )
    if not is_of_layer or (is_tensor and value.dim() == 0):
        return None
    if not is_tensor:
        return Problem(f": {text} is {came}, not a tensor of numbers.", "Give float32 weights.")
    if not value.is_floating_point():
        return Problem(f": {text} has {value.dtype} values.", "Give float32 weights.")
    return None


def _is_layer(group: FileLayer) -> bool:
    """Return whether a group of tensors is a layer.

    A single vector called "weight" is none: losses have one for their classes. It can also be a
    layer that the networks here lack, such as a PReLU, see `layers_beside`.
    """
    shapes = {name: tensor.dim() for name, tensor in group.tensors.items()}
    weight = shapes.get("weight", 0)
    return weight > 1 or "running_mean" in shapes or (weight == 1 and "bias" in shapes)


def modules(state: StateDict, fits: Callable[[list[FileLayer]], bool]) -> list[Part]:
    """Return the parts of a state dict that are networks, none inside of another.

    Args:
        state: the state dict.
        fits: whether layers are those of a network.
    """
    inside: dict[tuple[str, ...], list[FileLayer]] = {(): []}
    for layer in state.layers:
        parts = layer.name.split(".")[:-1]
        for depth in range(min(len(parts), MAX_WRAPPERS) + 1):
            inside.setdefault(tuple(parts[:depth]), []).append(layer)
    networks: list[Part] = []
    taken: set[str] = set()
    for _, layers in sorted(inside.items(), key=lambda each: len(each[0])):
        if not any(each.name in taken for each in layers) and fits(layers):
            networks.append(Part(state, _common_module(layers), layers))
            taken |= {each.name for each in layers}
    return networks


def _common_module(layers: Sequence[FileLayer]) -> str:
    """Return the path of the innermost module that holds all layers."""
    common, *paths = [each.name.split(".")[:-1] for each in layers]
    for path in paths:
        while path[: len(common)] != common:
            common.pop()
    return ".".join(common)


def layers_beside(state: StateDict, networks: Sequence[Part]) -> Iterator[FileLayer]:
    """Iterate over the groups of tensors that may be layers of a larger network.

    These are layers in none of the networks, and other tensors inside of one: scales of channels or
    tokens would change what the network computes. Tensors beside all modules of a network, such as
    `criterion.pos_weight`, are none of them.

    Args:
        state: the state dict.
        networks: the networks in it, at least one.
    """
    used = {each.name for part in networks for each in part.layers}
    for group in state.groups:
        if group.name not in used and (
            _is_layer(group) or any(_may_be_of(part, group) for part in networks)
        ):
            yield group


def _may_be_of(part: Part, group: FileLayer) -> bool:
    """Return whether tensors that are no layer may be a part of a network."""
    if not part.holds(group.name) or _OF_TRAINING.search(group.name):
        return False
    outer = len(part.module) + 1 if part.module else 0
    if list(group.tensors) == ["weight"] and group.tensors["weight"].dim() == 1:
        # The weights of a loss, one for each class, or else a layer such as a PReLU.
        weights = [each.tensors["weight"] for each in part.layers if "weight" in each.tensors]
        return len(group.tensors["weight"]) not in {
            len(each) for each in weights if each.dim() == 2
        }
    top = group.name[outer:].partition(".")[0]
    return bool(top) and top in {each.name[outer:].partition(".")[0] for each in part.layers}


def left_out(part: Part, networks: Sequence[Part]) -> Iterator[str]:
    """Iterate over the names in a state dict that belong to no layer of a network.

    Args:
        part: the network.
        networks: all networks in the state dict; others than `part` are named by their modules.
    """
    used = {f"{layer.name}.{last}" for layer in part.layers for last in layer.tensors}
    counters = {f"{layer.name}.{_COUNTER}" for layer in part.layers}
    names = {name.removeprefix(".") for name in used | counters}
    others = [each for each in networks if each is not part and each.module]
    for name in part.state.names:
        if name not in names:
            yield next((each.module for each in others if each.holds(name)), name)
