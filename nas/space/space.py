"""`SearchSpace`: a literal table of stages, and the walk from choices to a `Graph`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np

from nas.documents import shortened
from nas.errors import SpaceError
from nas.graph import ACTIVATIONS, Channels, Graph, Shape
from nas.names import require_identifier, require_name
from nas.space.architecture import Architecture, Value, parse_record
from nas.space.automaton import Language, Named, Word
from nas.space.block_graph import Chain, Part, input_token
from nas.space.builder import Builder
from nas.space.choice import MAX_SIZE, Choice, Options
from nas.space.reference import Reference, no_reference
from nas.space.stage import Reached, Row, Stage, Values

SMALLEST_FINAL_MAP = 3
"""Pixels a side that the last feature map keeps at least, unless a space says otherwise."""

GRAPH_CACHE_SIZE = 1024
"""Graphs that a space keeps for `Architecture.graph`; a graph with its ops takes about 10 kB."""

Measure = Literal["macs", "params", "peak_memory_bytes"]
"""Counts of a graph that are known for every part of it."""


@dataclass(frozen=True)
class SearchSpace:
    """A table of stages, adapted to an input size and a number of classes by `on`.

    Args:
        name: of the space.
        stages: the rows of the table.
        activation: the op kind that blocks end their convolutions with unless they say otherwise.
        norm: whether convolutions are followed by batch norms.
        image_size, channels: of the input, square.
        classes: what the head tells apart.
        smallest_map: pixels a side that small images leave the last feature map; see `strides`.
        choices: made once for the whole network; every block that takes their arguments gets them.
        resolutions: shares of the image size that a network can be run at.
        references: published networks that are points of the space.

    Raises SpaceError for a table that makes no network, naming the stage.
    """

    name: str
    stages: tuple[Stage, ...]
    activation: str = "relu"
    norm: bool = True
    image_size: int = 224
    channels: int = 3
    classes: int = 1000
    smallest_map: int = SMALLEST_FINAL_MAP
    choices: Mapping[str, Options] = field(default_factory=dict)
    resolutions: tuple[float, ...] = (1.0,)
    references: tuple[Reference, ...] = ()

    def __post_init__(self) -> None:
        require_name(self.name, "The name of a space", SpaceError)
        where = f"Space {self.name}"
        if self.activation not in ACTIVATIONS:
            raise SpaceError(
                f"{where}: activation {shortened(self.activation)} is unknown.",
                remedy=f"Use one of {', '.join(sorted(ACTIVATIONS))}.",
            )
        for size, value in {**self.settings, "smallest_map": self.smallest_map}.items():
            if type(value) is not int or not 1 <= value <= MAX_SIZE:
                raise SpaceError(
                    f"{where}: {size} is {shortened(value)}.",
                    remedy=f"Use a whole number from 1 to {MAX_SIZE}.",
                )
        _all_of(Stage, "stages", self.stages, where)
        _all_of(Reference, "references", self.references, where)
        if not self.stages:
            raise SpaceError(f"{where} has no stages.")
        _all_different(f"{where}: two references are", [r.name for r in self.references])
        for name in (*(stage.name for stage in self.stages), *self.choices):
            require_identifier(name, where, SpaceError)
        _all_different(f"{where}: two stages are", [stage.name for stage in self.stages])
        choices = [*self._own_parameters, *(each for row in self.rows for each in row.parameters())]
        _all_different(f"{where}: two choices are", [name for name, _ in choices])
        taken = {choice.name for row in self.rows for choice in row.network}
        for choice in self.network:
            if choice.key != "resolution" and choice.name not in taken:
                raise SpaceError(
                    f"{where}: no block takes the network-wide {choice.name}.",
                    remedy="Give it to a block as a keyword-only parameter, or to a stride.",
                )

    # Adapting

    def on(self, *, image_size: int, channels: int, classes: int) -> SearchSpace:
        """This space for square images of `image_size` pixels and `classes` classes."""
        return replace(self, image_size=image_size, channels=channels, classes=classes)

    @property
    def input_shape(self) -> Shape:
        """Channels, height and width of the images."""
        return (self.channels, self.image_size, self.image_size)

    def image_shape(self, network: Values) -> Shape:
        """What enters the network, for options of `network`: the images at its resolution."""
        size = self.image_size
        for choice, option in zip(self.network, network, strict=True):
            if choice.key == "resolution":
                size = int(option)
        return (self.channels, size, size)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """The stride of each stage at this input size, for the first network-wide options.

        The table holds the strides for large images. For small ones the first strides become 1,
        one stage after another, until the map that reaches the last stage, behind the largest
        kernels, has `smallest_map` pixels a side: at 32 px a network that shrinks by 32 in
        its table shrinks by 8.
        """
        return self.strides_of(tuple(choice.options[0] for choice in self.network))

    def strides_of(self, network: Values) -> tuple[int, ...]:
        """See `strides`; for options of `network`."""
        if network not in self._strides:
            chosen = {c.name: option for c, option in zip(self.network, network, strict=True)}
            strides = [row.stride(chosen) for row in self.rows]
            for index in range(len(strides)):
                if self._final_map(chosen, strides) >= self.smallest_map:
                    break
                strides[index] = 1
            self._strides[network] = tuple(strides)
        return self._strides[network]

    def _final_map(self, network: Mapping[str, Value], strides: Sequence[int]) -> int:
        """Pixels a side of what reaches the last stage; 0 where a block does not fit."""
        choices = {name: options[0] for name, options in self.parameters.items()}
        for name, options in self.parameters.items():
            if not isinstance(options[0], str):
                choices[name] = min(options) if name.endswith(".depth") else max(options)
        choices |= network
        x = self._image(self.input_shape)
        try:
            for row, stride in list(zip(self.rows, strides, strict=True))[:-1]:
                for part, _ in row.lower(x, choices, stride, self.builder):
                    x = part
        except SpaceError:
            return 0
        return min(x.shape[1:])

    # Choices

    @cached_property
    def network(self) -> tuple[Choice, ...]:
        """The choices made once for the whole network."""
        where = f"Space {self.name}"
        found = [Choice(where, name, name, options) for name, options in self.choices.items()]
        sizes = tuple(dict.fromkeys(round(share * self.image_size) for share in self.resolutions))
        if not sizes or min(sizes) < 1:
            raise SpaceError(
                f"{where}: resolutions is {self.resolutions!r}.",
                remedy="Give shares of the image size, such as (0.75, 1.0).",
            )
        if sizes != (self.image_size,):
            found.append(Choice(where, "resolution", "resolution", sizes))
        return tuple(found)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The stages, made ready."""
        return tuple(Row(self.name, stage, self.network) for stage in self.stages)

    @cached_property
    def parameters(self) -> dict[str, tuple[Value, ...]]:
        """Every choice with its options, those of blocks that a small depth leaves out included."""
        found = dict(self._own_parameters)
        for row in self.rows:
            found.update(row.parameters())
        return found

    def architecture(self, choices: Mapping[str, Any]) -> Architecture:
        """The canonical architecture of `choices`; those it does not use are left out.

        Choices that make one graph make one architecture: of several ways to write a network, the
        shallowest with the first options, blocks that are left out standing last.

        Raises SpaceError for a choice that is missing or not among the options, or that makes no
        network.
        """
        used = self._used(choices)
        if self._all_differ:
            return Architecture(self, used)
        return self._read(self._word(choices))

    def from_json(self, record: Mapping[str, Any]) -> Architecture:
        """Reads and checks what `Architecture.to_json` wrote.

        Raises SpaceError for another space's architecture, or an unknown or impossible choice.
        """
        space, choices = parse_record(record)
        if space != self.name:
            raise SpaceError(f"This architecture is of space {space}, not {self.name}.")
        unknown = [key for key, _ in choices if key not in self.parameters]
        if unknown:
            raise SpaceError(
                f"Space {self.name} has no choice {shortened(unknown[0])}.",
                remedy=f"Its choices: {', '.join(self.parameters)}.",
            )
        return self.architecture(dict(choices))

    def _used(self, choices: Mapping[str, Any]) -> Named:
        """The choices that matter, checked, in the order of the table."""
        found = list(self._own_parameters)
        for row in self.rows:
            found += row.used(choices)
        named = []
        for key, options in found:
            value = choices.get(key)
            if value not in options or isinstance(value, bool):
                came = shortened(value) if key in choices else "missing"
                raise SpaceError(
                    f"Space {self.name}: {key} is {came}.",
                    remedy=f"Allowed: {', '.join(map(str, options))}.",
                )
            named.append((key, options[options.index(value)]))
        return tuple(named)

    @cached_property
    def _own_parameters(self) -> list[tuple[str, tuple[Value, ...]]]:
        return [(choice.name, choice.options) for choice in self.network if choice.is_real]

    @cached_property
    def _all_differ(self) -> bool:
        """Whether choices that are different where it matters always make different networks."""
        network = math.prod(len(choice.options) for choice in self.network)
        return self.size == network * math.prod(row.combinations() for row in self.rows)

    # Published networks

    def published(self, name: str) -> Architecture:
        """Return a reference network as it was published: its image size, ImageNet, its norms.

        The space of the architecture is this one, adapted to these settings.

        Raises SpaceError for an unknown name, or a row that is no point of the space.
        """
        row = self.reference_row(name)
        return replace(
            self, image_size=row.image_size, channels=3, classes=1000, norm=row.norm
        ).reference(name)

    def reference(self, name: str) -> Architecture:
        """A reference network as an architecture of this space, at this input size.

        Raises SpaceError as `published` does.
        """
        found = self.reference_row(name)
        return self.architecture(found.resolved(self.parameters, self.image_size))

    def reference_row(self, name: str) -> Reference:
        """A row of `references`. Raises SpaceError for an unknown name, with those like it."""
        for found in self.references:
            if found.name == name:
                return found
        raise no_reference(f" in space {self.name}", name, [each.name for each in self.references])

    # All architectures

    @cached_property
    def language(self) -> Language:
        """The networks of the space as words, for exact counting."""
        return Language(self)

    @property
    def size(self) -> int:
        """The number of different networks."""
        return self.language.size

    def sample(
        self,
        seed: int | np.random.Generator = 0,
        *,
        uniform_over: Literal["networks", "choices"] = "networks",
    ) -> Architecture:
        """Draw an architecture at random.

        Args:
            seed: a seed, or a generator to draw from; the same seed gives the same architecture.
            uniform_over: with "networks", every network of the space is equally likely. Most
                networks of a space are deep ones; with "choices", every option of every choice is
                equally likely instead, which gives shallow networks a larger share.

        Example:
            >>> from nas.space import load_space
            >>> space = load_space("mobilenet", image_size=32)
            >>> space.sample(seed=0) == space.sample(seed=0)
            True
            >>> rng = np.random.default_rng(0)
            >>> space.sample(rng) == space.sample(rng)
            False
        """
        rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
        if uniform_over == "networks":
            return self._read(self.language.draw(rng))
        return self.architecture(
            {key: options[rng.integers(len(options))] for key, options in self.parameters.items()}
        )

    def enumerate(self) -> Iterator[Architecture]:
        """Every architecture once. Look at `size` first."""
        for word in self.language.words():
            yield self._read(word)

    @property
    def largest(self) -> Architecture:
        """The architecture with the most MACs; among equals, the one with the earlier options."""
        return self.extreme("macs", "largest")

    @property
    def smallest(self) -> Architecture:
        """The architecture with the fewest MACs; among equals, the one with the earlier options."""
        return self.extreme("macs", "smallest")

    def extreme(self, measure: Measure, end: Literal["smallest", "largest"]) -> Architecture:
        """The architecture with the smallest or largest count of all, without a search."""
        if (measure, end) not in self._extremes:
            named = self.language.extreme(
                lambda part: getattr(part, measure),
                (lambda a, b: a > b) if end == "largest" else (lambda a, b: a < b),
                max if measure == "peak_memory_bytes" else (lambda a, b: a + b),
            )
            choices = {name: options[0] for name, options in self.parameters.items()}
            self._extremes[measure, end] = self.architecture({**choices, **dict(named)})
        return self._extremes[measure, end]

    @cached_property
    def _extremes(self) -> dict[tuple[Measure, str], Architecture]:
        return {}

    # Lowering

    def lower(self, architecture: Architecture) -> Graph:
        """Build the graph of an architecture of this space, without checking its choices again.

        `Architecture.graph` is the same graph from a cache.

        Raises SpaceError where the choices make no network.
        """
        try:
            image, parts = self._walk(dict(architecture.choices))
        except KeyError as error:
            raise SpaceError(
                f"This architecture of space {architecture.space.name} has no choice {error}, "
                f"which space {self.name} needs.",
                remedy="Make architectures with the space that lowers them.",
            ) from error
        return Chain(image.graph.ops[0], parts)

    @cached_property
    def graph_cache(self) -> Callable[[Architecture], Graph]:
        """`lower` with a cache of the last `GRAPH_CACHE_SIZE` graphs."""
        return lru_cache(GRAPH_CACHE_SIZE)(self.lower)

    def _walk(self, choices: Mapping[str, Any]) -> tuple[Part, list[tuple[Part, str]]]:
        network = tuple([choice.value(choices) for choice in self.network])
        image = self._image(self.image_shape(network))
        x = image
        parts: list[tuple[Part, str]] = []
        for row, stride in zip(self.rows, self.strides_of(network), strict=True):
            for part, name in row.lower(x, choices, stride, self.builder):
                parts.append((part, name))
                x = part
        return image, parts

    def _image(self, shape: Shape) -> Part:
        if shape not in self._images:
            builder = self.builder(shape, Channels.prefix(shape[0], shape[0]))
            self._images[shape] = Part.image(builder)
        return self._images[shape]

    @cached_property
    def _images(self) -> dict[Shape, Part]:
        return {}

    def _word(self, choices: Mapping[str, Any]) -> Word:
        image, parts = self._walk(choices)
        word = [input_token(image.shape)]
        for part, _ in parts:
            word += part.word
        return tuple(word)

    def _read(self, word: Word) -> Architecture:
        return Architecture(self, self._ordered(self.language.read(word)))

    def _ordered(self, named: Named) -> Named:
        """Choices in the order of the table."""
        chosen = dict(named)
        return tuple([(key, chosen[key]) for key in self.parameters if key in chosen])

    def fragments(self) -> Iterator[Graph]:
        """Every block of the space by itself, for every input shape that can reach it.

        Kernels depend on nothing beyond the neighbouring block, so the kernels of the fragments are
        those of all architectures, found without enumerating the architectures.
        """
        seen: set[Any] = set()
        for _, move in self.language.visit():
            if move.part is not None:
                key = (move.part.graph.input_shape, move.word)
                if key not in seen:
                    seen.add(key)
                    yield move.part.graph

    def placed_blocks(self) -> Iterator[Graph]:
        """Blocks in their places, with the space's own slots: together they use every slot.

        How large the widest version of a slot is depends on the table and on the widest version of
        the incoming tensor, not on what is chosen, so one tensor a widest version is enough.
        """
        seen: set[Any] = set()
        for options in product(*[choice.options for choice in self.network]):
            shape = self.image_shape(options)
            reached: Mapping[int, Reached] = {
                shape[0]: (shape, Channels.prefix(shape[0], shape[0]))
            }
            for row, stride in zip(self.rows, self.strides_of(options), strict=True):
                leaving: dict[int, Reached] = {}
                taken = row.taken(options)
                for graph in row.placed_blocks(reached, leaving, taken, stride, self.builder):
                    key = tuple([op._replace(inputs=(), shape=(0, 0, 0)) for op in graph.ops])
                    if key not in seen:
                        seen.add(key)
                        yield graph
                reached = leaving

    # Identity

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """What tells the spaces of a program apart: the name, the settings and the norms."""
        return self.name, self.image_size, self.channels, self.classes, self.norm

    def __reduce__(self) -> tuple[Any, ...]:
        # What a space caches holds functions that cannot be pickled; its table can be.
        return SearchSpace, tuple([getattr(self, each.name) for each in fields(self)])

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
        table = [row.describe() for row in self.rows]
        wide = [[choice.name, choice.describe()] for choice in self.network]
        blocks = [graph.text for graph in self.placed_blocks()]
        text = json.dumps(
            [self.name, self.activation, self.norm, self.settings, wide, table, blocks]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _strides(self) -> dict[Values, tuple[int, ...]]:
        return {}

    def builder(self, shape: Shape, channels: Channels) -> Builder:
        """Starts a block behind a tensor."""
        return Builder(
            shape,
            classes=self.classes,
            norm=self.norm,
            activation=self.activation,
            channels=channels,
        )


def _all_of(kind: type, name: str, values: object, where: str) -> None:
    if not isinstance(values, tuple | list) or not all(isinstance(v, kind) for v in values):
        raise SpaceError(
            f"{where}: {name} is {shortened(values)}.", remedy=f"Give a tuple of {kind.__name__}s."
        )


def _all_different(message: str, names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        if name in names[:position]:
            raise SpaceError(f"{message} called {name!r}.", remedy="Give each a name of its own.")
