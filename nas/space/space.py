"""`SearchSpace`: a literal table of stages, and the walk from choices to a `Graph`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nas.errors import SpaceError
from nas.graph import ACTIVATIONS, Graph, Shape
from nas.space.architecture import Architecture, Value
from nas.space.builder import Builder
from nas.space.stage import Row, Stage

SMALLEST_FINAL_MAP = 3
"""Pixels a side that the last feature map keeps at least; see `SearchSpace.strides`."""


@dataclass(frozen=True)
class SearchSpace:
    """A table of stages, adapted to an input size and a number of classes by `on`.

    Raises SpaceError for a table that makes no network, naming the stage.
    """

    name: str
    stages: tuple[Stage, ...]
    activation: str = "relu"
    norm: bool = True
    image_size: int = 224
    channels: int = 3
    classes: int = 1000

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise SpaceError(
                f"Space {self.name}: activation {self.activation!r} is unknown.",
                remedy=f"Use one of {', '.join(sorted(ACTIVATIONS))}.",
            )
        seen: set[str] = set()
        for stage in self.stages:
            if stage.name in seen:
                raise SpaceError(f"Space {self.name}: two stages are called {stage.name!r}.")
            seen.add(stage.name)
        _ = self._rows

    # Adapting

    def on(self, *, image_size: int, channels: int, classes: int) -> SearchSpace:
        """This space for square images of `image_size` pixels and `classes` classes."""
        return replace(self, image_size=image_size, channels=channels, classes=classes)

    @property
    def input_shape(self) -> Shape:
        """Channels, height and width of the images."""
        return (self.channels, self.image_size, self.image_size)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """The stride of each stage at this input size.

        The table holds the strides for large images. For small ones the first strides become 1,
        one stage after another, until the last feature map has `SMALLEST_FINAL_MAP` pixels a side:
        at 32 px a network that shrinks by 32 in its table shrinks by 8.
        """
        strides = [stage.stride for stage in self.stages]
        for index in range(len(strides)):
            final = self.image_size
            for stride in strides:
                final = -(-final // stride)
            if final >= SMALLEST_FINAL_MAP:
                break
            strides[index] = 1
        return tuple(strides)

    # Choices

    @cached_property
    def parameters(self) -> dict[str, tuple[Value, ...]]:
        """Every choice with its options, those of blocks that a small depth leaves out included."""
        found: dict[str, tuple[Value, ...]] = {}
        for row in self._rows:
            found.update(row.parameters())
        return found

    def architecture(self, choices: Mapping[str, Any]) -> Architecture:
        """The canonical architecture of `choices`; those it does not use are left out.

        Raises SpaceError for a choice that is missing or not among the options.
        """
        kept: list[tuple[str, Value]] = []
        for row in self._rows:
            for key, options in row.used(choices):
                value = choices.get(key)
                if value not in options:
                    allowed = ", ".join(map(str, options))
                    raise SpaceError(
                        f"Space {self.name}: {key} is {value!r}.", remedy=f"Allowed: {allowed}."
                    )
                kept.append((key, value))
        return Architecture(self.name, tuple(kept))

    def from_json(self, record: Mapping[str, Any]) -> Architecture:
        """Reads and checks what `Architecture.to_json` wrote.

        Raises SpaceError for another space's architecture, or an unknown or impossible choice.
        """
        found = Architecture.from_json(record)
        if found.space != self.name:
            raise SpaceError(f"This architecture is of space {found.space}, not {self.name}.")
        unknown = [key for key, _ in found.choices if key not in self.parameters]
        if unknown:
            raise SpaceError(
                f"Space {self.name} has no choice {unknown[0]!r}.",
                remedy=f"Its choices: {', '.join(self.parameters)}.",
            )
        return self.architecture(dict(found.choices))

    def sample(self, rng: np.random.Generator) -> Architecture:
        """An architecture with every choice drawn uniformly from its options."""
        return self.architecture(
            {key: options[rng.integers(len(options))] for key, options in self.parameters.items()}
        )

    @cached_property
    def size(self) -> int:
        """The number of canonical choices: those of left-out blocks do not count."""
        return math.prod(row.size() for row in self._rows)

    @cached_property
    def largest(self) -> Architecture:
        """The architecture with the most MACs; among equals, the one with the earlier options."""
        return self._extreme(max)

    @cached_property
    def smallest(self) -> Architecture:
        """The architecture with the fewest MACs; among equals, the one with the earlier options."""
        return self._extreme(min)

    def cover(self) -> list[Architecture]:
        """Architectures that together use every slot of the space.

        Sizes decide how much of a slot is used, operator names and vanishing sizes whether it is:
        so every position among the operators' options, with the largest and the smallest sizes.
        """
        found: dict[Architecture, None] = {}
        operators = max(
            (len(o) for o in self.parameters.values() if isinstance(o[0], str)), default=1
        )
        for position in range(operators):
            for pick in (max, min):
                choices = {
                    key: options[min(position, len(options) - 1)]
                    if isinstance(options[0], str)
                    else (max if key.endswith(".depth") else pick)(options)
                    for key, options in self.parameters.items()
                }
                found[self.architecture(choices)] = None
        return list(found)

    # Lowering

    def lower(self, architecture: Architecture) -> Graph:
        """The graph of an architecture of this space, without checking its choices again.

        Raises SpaceError where the choices make no network.
        """
        build = self._builder(self.input_shape)
        choices = dict(architecture.choices)
        x = build.input
        for row, stride in zip(self._rows, self.strides, strict=True):
            x = row.lower(build, x, choices, stride)
        return build.graph()

    def fragments(self) -> Iterator[Graph]:
        """Every block of the space by itself, for every input shape that can reach it.

        Kernels depend on nothing beyond the neighbouring block, so the kernels of the fragments are
        those of all architectures, found without enumerating the architectures.
        """
        seen: set[str] = set()
        shapes = {self.input_shape}
        for row, stride in zip(self._rows, self.strides, strict=True):
            leaving: set[Shape] = set()
            for fragment, last in row.fragments(shapes, stride, self._builder):
                if last:
                    leaving.add(fragment.output_shape)
                if len(fragment.ops) > 1 and fragment.digest not in seen:
                    seen.add(fragment.digest)
                    yield fragment
            shapes = leaving

    # Identity

    @property
    def settings(self) -> dict[str, int]:
        """What `on` takes; a space and its settings rebuild the adapted space."""
        return {
            "image_size": self.image_size,
            "channels": self.channels,
            "classes": self.classes,
        }

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the table, the settings, and what the blocks make of them."""
        table = [row.describe() for row in self._rows]
        graphs = [self.lower(architecture).digest for architecture in self.cover()]
        text = json.dumps([self.name, self.activation, self.norm, self.settings, table, graphs])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        return tuple(Row(self.name, stage) for stage in self.stages)

    def _builder(self, image: Shape) -> Builder:
        return Builder(image, classes=self.classes, norm=self.norm, activation=self.activation)

    def _extreme(self, pick: Callable[..., Value]) -> Architecture:
        """Coordinate-wise, which is exact because MACs grow with every size by itself."""
        choices = {key: pick(options) for key, options in self.parameters.items()}
        for key, options in self.parameters.items():
            if len(options) > 1 and isinstance(options[0], str):
                choices[key] = pick(
                    options,
                    key=lambda option, key=key: (
                        self.lower(self.architecture({**choices, key: option})).macs
                    ),
                )
        return self.architecture(choices)
