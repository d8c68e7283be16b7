"""Matches the layers of a file of weights with those of a graph, by their shapes and order.

A layer is a convolution, a linear layer or a batch norm. The names of its tensors differ between
libraries; what is compared is the `Signature`: the shape of each of its tensors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from nas.graph import Graph, Op

Signature = tuple[tuple[str, tuple[int, ...]], ...]
"""The names and shapes of a layer's tensors, sorted by name: `(("bias", (8,)), ("weight", ...))`.

A 1x1 convolution has the signature of the linear layer that computes the same on a vector: timm
has convolutions where torchvision has linear layers.
"""

MAX_SEARCH_STEPS = 100_000
"""Steps after which the order of layers counts as unknown; published networks take about 500."""


class FileLayer(NamedTuple):
    """A layer of a file: the path of its module, and its tensors by name."""

    name: str
    tensors: Mapping[str, Tensor]

    @property
    def signature(self) -> Signature:
        """See `Signature`."""
        return _signature({name: tuple(each.shape) for name, each in self.tensors.items()})


class AmbiguousOrderError(ValueError):
    """The names of layers do not tell in which order the network runs them."""


def weighted_ops(graph: Graph) -> list[Op]:
    """Return the ops of a graph that have parameters, in their order."""
    return [op for op in graph.ops if op.slot is not None]


def op_signature(graph: Graph, op: Op) -> Signature:
    """Return the signature of an op with parameters."""
    channels = op.shape[0]
    if op.kind == "norm":
        names = ("weight", "bias", "running_mean", "running_var")
        return _signature(dict.fromkeys(names, (channels,)))
    shapes = {"weight": graph.weight_shape(op)}
    if op.bias:
        shapes["bias"] = (channels,)
    return _signature(shapes)


def with_outputs(signature: Signature, outputs: int) -> Signature:
    """Return the signature of a layer with another number of output channels."""
    return tuple([(name, (outputs, *shape[1:])) for name, shape in signature])


def text_of(signature: Signature) -> str:
    """Return a signature for messages: `weight 32x3x3x3` or `bias 8, weight 8x16`."""
    return ", ".join(f"{name} {'x'.join(map(str, shape)) or '1'}" for name, shape in signature)


def _signature(shapes: Mapping[str, tuple[int, ...]]) -> Signature:
    return tuple(
        [
            (name, shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape)
            for name, shape in sorted(shapes.items())
        ]
    )


def in_order(
    expected: Sequence[Signature], layers: Sequence[FileLayer], *, is_ordered: bool
) -> list[FileLayer] | None:
    """Return the layers of a file in the order of a network, or None if no order fits.

    Args:
        expected: signatures of the network's layers, in the order in which they run.
        layers: as many layers of a file.
        is_ordered: whether the layers stand in the order in which their modules were defined,
            which is nearly always the order in which they run.

    Raises AmbiguousOrderError where several layers fit and the names do not tell which is first.
    """
    if is_ordered and [layer.signature for layer in layers] == list(expected):
        return list(layers)
    return _in_order_of_modules(expected, layers)


@dataclass
class _Module:
    """A module in the tree of a file's names: its own layer, and the modules inside of it."""

    name: str
    layer: FileLayer | None = None
    inside: dict[str, _Module] = field(default_factory=dict)

    @property
    def natural_name(self) -> tuple[tuple[int, str], ...]:
        """The name in parts that sort `bn2` before `bn10`."""
        parts = re.findall(r"\d+|\D+", self.name)
        return tuple([(int(part), "") if part.isdecimal() else (-1, part) for part in parts])

    @property
    def name_without_numbers(self) -> str:
        return re.sub(r"\d+", "#", self.name)

    def signatures(self) -> Iterator[Signature]:
        """Iterate over the signatures of all layers of the module."""
        if self.layer is not None:
            yield self.layer.signature
        for module in self.inside.values():
            yield from module.signatures()


_Frames = tuple[tuple[_Module, ...], ...]
"""The modules that have not run yet inside of each module that is running, the outermost first."""


def _in_order_of_modules(
    expected: Sequence[Signature], layers: Iterable[FileLayer]
) -> list[FileLayer] | None:
    """Return the layers in the first order that fits, of those that the names allow.

    A module runs to its end before the next one begins. Modules whose names are numbers run in
    this order. Of others any can be next, those that are layers first; equal ones are taken by the
    numbers in their names.
    """
    todo: list[tuple[tuple[FileLayer, ...], _Frames]] = [((), (_sorted(_tree(layers).inside),))]
    for _ in range(MAX_SEARCH_STEPS):
        if not todo:
            return None
        order, frames = todo.pop()
        count = len(order)
        while frames and not frames[-1]:
            frames = frames[:-1]
        if not frames:
            if count == len(expected):
                return list(order)
            continue
        waiting = frames[-1]
        branches = []
        for module in waiting[:1] if _are_numbered(waiting) else _distinct(waiting):
            rest = tuple([each for each in waiting if each is not module])
            deeper = (*frames[:-1], rest, _sorted(module.inside))
            if module.layer is None:
                branches.append((order, deeper))
            elif count < len(expected) and module.layer.signature == expected[count]:
                branches.append(((*order, module.layer), deeper))
        todo += reversed(branches)
    raise AmbiguousOrderError("too many orders fit")


def _tree(layers: Iterable[FileLayer]) -> _Module:
    root = _Module("")
    for layer in layers:
        module = root
        for part in layer.name.split("."):
            module = module.inside.setdefault(part, _Module(part))
        module.layer = layer
    return root


def _sorted(modules: Mapping[str, _Module]) -> tuple[_Module, ...]:
    """Return modules by number, or layers before other modules and each by name."""
    if _are_numbered(modules.values()):
        return tuple(sorted(modules.values(), key=lambda each: int(each.name)))
    return tuple(sorted(modules.values(), key=lambda each: (each.layer is None, each.natural_name)))


def _are_numbered(modules: Iterable[_Module]) -> bool:
    return all(module.name.isdecimal() for module in modules)


def _distinct(modules: Sequence[_Module]) -> list[_Module]:
    """Return the first of all modules with equal layers.

    Raises AmbiguousOrderError for equal modules whose names differ in more than numbers.
    """
    first: dict[tuple[Signature, ...], _Module] = {}
    for module in modules:
        content = tuple(sorted(module.signatures()))
        other = first.setdefault(content, module)
        if other.name_without_numbers != module.name_without_numbers:
            raise AmbiguousOrderError(
                f"{other.name} and {module.name} have equal shapes, and either could be first"
            )
    return list(first.values())


def difference(
    expected: Sequence[Signature], layers: Sequence[FileLayer]
) -> tuple[int | None, FileLayer | None, int]:
    """Return how the layers of a file differ from those of a network, whatever their order.

    Returns:
        The position of the network's first layer that the file lacks, the file's first layer that
        the network lacks, and the number of layers that they have in common.
    """
    unmatched = Counter([layer.signature for layer in layers])
    missing = None
    common = 0
    for position, signature in enumerate(expected):
        if unmatched[signature]:
            unmatched[signature] -= 1
            common += 1
        elif missing is None:
            missing = position
    wanted = Counter(expected)
    for layer in layers:
        if not wanted[layer.signature]:
            return missing, layer, common
        wanted[layer.signature] -= 1
    return missing, None, common
