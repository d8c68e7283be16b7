"""`SearchSpace`: a table of stages, the networks in it, and their graphs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from nas.errors import SpaceError
from nas.files.documents import shortened
from nas.files.names import require_choice, require_identifier, require_name
from nas.graph import ACTIVATIONS, BOTH_DTYPES, DEFAULT_DTYPE, Channels, Graph, Shape
from nas.space.architecture import Architecture, Choices, Value, parse_record
from nas.space.automaton import End, NetworkAutomaton
from nas.space.block_graph import CompositeGraph, OpSequence
from nas.space.builder import Builder
from nas.space.choice import Choice, Options
from nas.space.compiled_stage import ChosenOptions, CompiledStage, require_mapping
from nas.space.counting import DeterministicAutomaton
from nas.space.elastic import MAX_SIZE
from nas.space.exits import exit_graphs, require_exit
from nas.space.lowering import Lowering
from nas.space.reference import Reference, unknown_reference_error
from nas.space.restriction import restricted
from nas.space.stage import Stage

DEFAULT_SMALLEST_MAP = 3
"""Height and width in pixels that the last feature map keeps: a kernel of 3 still fits on it."""

MAX_RESOLUTION = 2.0
"""Largest share of the image size that networks run at: a larger one is a number of pixels."""


_INPUT_CHOICES = ("resolution", "dtype")
"""Network-wide choices that decide the input of a network, and no argument of a block."""

GRAPH_CACHE_SIZE = 1024
"""Graphs that a space keeps for `Architecture.graph`; a graph with its ops takes about 10 kB."""


@dataclass(frozen=True)
class SearchSpace:
    """A table of stages, adapted to an input size and a number of classes.

    Args:
        name: of the space.
        stages: the rows of the table.
        activation: what blocks end their convolutions with unless they name another activation.
        norm: whether convolutions are followed by batch norms.
        image_size: height and width of the images in pixels.
        channels: channels of the images.
        classes: how many classes the networks tell apart.
        smallest_map: height and width in pixels that small images leave the last feature map; see
            `strides`.
        choices: made once for the whole network; every block that takes their arguments gets them.
        resolutions: fractions of the image size that a network can be run at, up to
            `MAX_RESOLUTION`.
        references: published networks that are points of the space.
        narrowed: the options that are left of those in the table, by name of the choice; see
            `within`.
        dtypes: types of weights and activations that a network can have; see `in_both_dtypes`.
        exit: name of the stage behind which trained networks have a second classifier, see
            `nas.space.exits`; None for no exit.

    Raises SpaceError for a table that makes no network, naming the stage.

    Example:
        >>> space = SearchSpace(
        ...     "small",
        ...     stages=(
        ...         Stage("stem", "conv", width=16, stride=2, per_stage={"kernel": 3}),
        ...         Stage("body", "inverted_residual", width=16, depth=(1, 2),
        ...               per_block={"kernel": (3, 5), "expand": 3}),
        ...         Stage("head", "linear_classifier"),
        ...     ),
        ...     image_size=32,
        ...     classes=10,
        ... )
        >>> space.size
        6
        >>> dict(space.largest.choices)
        {'body.depth': 2, 'body.0.kernel': 5, 'body.1.kernel': 5}
        >>> space.largest.graph.output_shape
        (10, 1, 1)
    """

    name: str
    stages: tuple[Stage, ...]
    activation: str = "relu"
    norm: bool = True
    image_size: int = 224
    channels: int = 3
    classes: int = 1000
    smallest_map: int = DEFAULT_SMALLEST_MAP
    choices: Mapping[str, Options] = field(default_factory=dict)
    resolutions: tuple[float, ...] = (1.0,)
    references: tuple[Reference, ...] = ()
    narrowed: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    dtypes: tuple[str, ...] = (DEFAULT_DTYPE,)
    exit: str | None = None

    def __post_init__(self) -> None:
        require_name(self.name, "The name of a space", SpaceError)
        where = f"Space {self.name}"
        if not isinstance(self.activation, str) or self.activation not in ACTIVATIONS:
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
        require_mapping(self.choices, f"{where}: choices")
        shares = self.resolutions
        if not isinstance(shares, tuple | list) or any(each > MAX_RESOLUTION for each in shares):
            raise SpaceError(
                f"{where}: resolutions is {shortened(self.resolutions)}.",
                remedy=f"Give shares of the image size up to {MAX_RESOLUTION:g}, not pixels: 24 "
                "and 32 pixels of images of 32 are (0.75, 1.0).",
            )
        _require_all(Stage, "stages", self.stages, where)
        _require_all(Reference, "references", self.references, where)
        if not self.stages:
            raise SpaceError(f"{where} has no stages.")
        _require_unique(f"{where}: two references are", [each.name for each in self.references])
        for name in (*(stage.name for stage in self.stages), *self.choices):
            require_identifier(name, where, SpaceError)
        if "dtype" in self.choices:
            raise SpaceError(
                f"{where}: a network-wide choice is called dtype.",
                remedy="Use another name: dtype is the type of weights and activations.",
            )
        _require_unique(f"{where}: two stages are", [stage.name for stage in self.stages])
        require_exit(self)
        in_stages = [each for stage in self.compiled_stages for each in stage.parameters()]
        names = [name for name, _ in (*self._network_parameters, *in_stages)]
        _require_unique(f"{where}: two choices are", names)
        known = [choice.name for choice in self.network_choices]
        known += [name for stage in self.compiled_stages for name in stage.choice_names]
        for name in self.narrowed:
            if name not in known:
                raise SpaceError(
                    f"{where}: narrowed has {shortened(name)}.",
                    remedy=f"Its choices: {', '.join(known)}.",
                )
        taken = {each.name for stage in self.compiled_stages for each in stage.network_choices}
        for choice in self.network_choices:
            if choice.argument not in (*_INPUT_CHOICES, *taken):
                raise SpaceError(
                    f"{where}: no block takes the network-wide {choice.name}.",
                    remedy="Give it to a block as a keyword-only parameter, or to a stride.",
                )

    # Adapting to a dataset

    def adapt(
        self,
        *,
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
    ) -> SearchSpace:
        """Return this space for other images or classes; what is None stays as it is.

        Args:
            image_size: height and width of the images in pixels.
            channels: channels of the images.
            classes: how many classes the networks tell apart.
        """
        return self._with(
            image_size=self.image_size if image_size is None else image_size,
            channels=self.channels if channels is None else channels,
            classes=self.classes if classes is None else classes,
        )

    def _with(self, **settings: Any) -> SearchSpace:
        """Return this space with other settings, the same one each time: a space caches a lot."""
        key = tuple(sorted(settings.items()))
        if key not in self._adapted:
            self._adapted[key] = replace(self, **settings)
        return self._adapted[key]

    @cached_property
    def _adapted(self) -> dict[tuple[tuple[str, Any], ...], SearchSpace]:
        return {}

    def require_classifier(self) -> None:
        """Check that a network of this space ends with one number for each class.

        Raises SpaceError for networks that end otherwise.
        """
        first = {name: options[0] for name, options in self.parameters.items()}
        input_op, blocks = self._lowering.walk(first)
        output = [input_op.shape, *(block.shape for block, _ in blocks)][-1]
        if output != (self.classes, 1, 1):
            raise SpaceError(
                f"Space {self.name}: its networks end with {' x '.join(map(str, output))} numbers, "
                f"not with one for each of {self.classes} classes.",
                remedy='End the table with a classifier: Stage("head", "linear_classifier").',
            )

    @cached_property
    def in_both_dtypes(self) -> SearchSpace:
        """The space in which `dtype` is a choice of every network: float32 or int8.

        The choice changes neither the table of the space nor the weights of a supernet.
        """
        return replace(self, dtypes=BOTH_DTYPES)

    @property
    def settings(self) -> dict[str, int]:
        """The arguments of `adapt`: with the space's file they rebuild the adapted space."""
        return {
            "image_size": self.image_size,
            "channels": self.channels,
            "classes": self.classes,
        }

    @property
    def input_shape(self) -> Shape:
        """Channels, height and width of the images."""
        return (self.channels, self.image_size, self.image_size)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """The stride of each stage at this input size, for the first network-wide options.

        The table holds the strides for large images. For small images the first strides become 1,
        one stage after another, until the map that reaches the last stage keeps `smallest_map`
        pixels a side behind the largest kernels of the `whole` space. A network whose table shrinks
        the image by 32 shrinks one of 32 pixels by 8.
        """
        return self.strides_for(tuple(choice.options[0] for choice in self.network_choices))

    def strides_for(self, network_options: ChosenOptions) -> tuple[int, ...]:
        """Return the stride of each stage for options of `network_choices`; see `strides`."""
        return self._lowering.strides_for(network_options)

    # Choices

    @cached_property
    def network_choices(self) -> tuple[Choice, ...]:
        """The choices made once for the whole network."""
        where = f"Space {self.name}"
        choices = [
            Choice(where, name, name, options, self.narrowed.get(name))
            for name, options in self.choices.items()
        ]
        sizes = tuple(dict.fromkeys(round(share * self.image_size) for share in self.resolutions))
        if not sizes or min(sizes) < 1:
            raise SpaceError(
                f"{where}: resolutions is {self.resolutions!r}.",
                remedy="Give shares of the image size, such as (0.75, 1.0).",
            )
        if sizes != (self.image_size,):
            choices.append(Choice(where, "resolution", "resolution", sizes))
        if len(self.dtypes) > 1:
            choices.append(Choice(where, "dtype", "dtype", self.dtypes))
        return tuple(choices)

    @cached_property
    def compiled_stages(self) -> tuple[CompiledStage, ...]:
        """The stages, ready to lower."""
        return tuple(CompiledStage(self, stage) for stage in self.stages)

    @cached_property
    def parameters(self) -> dict[str, tuple[Value, ...]]:
        """The options of every choice by name, including choices of blocks that may be left out."""
        parameters = dict(self._network_parameters)
        for stage in self.compiled_stages:
            parameters.update(stage.parameters())
        return parameters

    def architecture(self, choices: Mapping[str, Any]) -> Architecture:
        """Return the canonical architecture of `choices`.

        Choices that make one graph make one architecture, without the choices that the network
        does not use. Of several ways to write a network, the canonical one is the shallowest with
        the first options, in which left-out blocks stand last.

        Args:
            choices: an option for each parameter that the network uses; others are ignored.

        Raises SpaceError for a choice that is missing or not among the options, or that makes no
        network.
        """
        used = self.used_choices(choices)
        if self._is_injective:
            return Architecture(self, used)
        return self._canonical(self._lowering.op_sequence(choices))

    def from_json(self, record: Mapping[str, Any]) -> Architecture:
        """Read what `Architecture.to_json` wrote, and check it.

        An architecture with a dtype is one of `in_both_dtypes`.

        Raises SpaceError for another space's architecture, or an unknown or impossible choice.
        """
        space, choices = parse_record(record)
        if space != self.name:
            raise SpaceError(f"This architecture is of space {space}, not {self.name}.")
        if "dtype" in dict(choices) and "dtype" not in self.parameters:
            return self.in_both_dtypes.from_json(record)
        unknown = [key for key, _ in choices if key not in self.parameters]
        if unknown:
            raise SpaceError(
                f"Space {self.name} has no choice {shortened(unknown[0])}.",
                remedy=f"Its choices: {', '.join(self.parameters)}.",
            )
        return self.architecture(dict(choices))

    def used_choices(self, choices: Mapping[str, Any]) -> Choices:
        """Return the choices that the network uses, in the order of the table.

        Raises SpaceError for a choice that is missing or not among the options.
        """
        active = list(self._network_parameters)
        for stage in self.compiled_stages:
            active += stage.active_parameters(choices)
        used = []
        for name, options in active:
            value = choices.get(name)
            if value not in options or isinstance(value, bool):
                came = shortened(value) if name in choices else "missing"
                raise SpaceError(
                    f"Space {self.name}: {name} is {came}.",
                    remedy=f"Allowed: {', '.join(map(str, options))}.",
                )
            used.append((name, options[options.index(value)]))
        return tuple(used)

    @cached_property
    def _network_parameters(self) -> list[tuple[str, tuple[Value, ...]]]:
        return [(each.name, each.options) for each in self.network_choices if each.has_alternatives]

    @cached_property
    def _is_injective(self) -> bool:
        """Whether used choices that differ always make different networks."""
        network_wide = math.prod(len(choice.options) for choice in self.network_choices)
        in_stages = math.prod(stage.count_combinations() for stage in self.compiled_stages)
        return self.size == network_wide * in_stages

    def _canonical(self, ops: OpSequence) -> Architecture:
        chosen = dict(self.automaton.canonical_choices(ops))
        ordered = tuple([(name, chosen[name]) for name in self.parameters if name in chosen])
        return Architecture(self, ordered)

    # Published networks

    def published(self, name: str) -> Architecture:
        """Return a reference network as it was published: its image size, ImageNet, its norms.

        The space of the architecture is this one, adapted to these settings.

        Raises SpaceError for an unknown name, or a row that is no point of the space.
        """
        return self.as_published(self.reference_row(name)).reference(name)

    def as_published(self, row: Reference) -> SearchSpace:
        """Return this space with the settings of a published network."""
        return self._with(image_size=row.image_size, channels=3, classes=1000, norm=row.norm)

    def reference(self, name: str) -> Architecture:
        """Return a reference network as an architecture of this space, at this input size.

        Raises SpaceError as `published` does.
        """
        return self.architecture(self.choices_of(self.reference_row(name)))

    def choices_of(self, row: Reference) -> dict[str, Value]:
        """Return the options of a row of `references` for all choices of the table."""
        return row.resolve(self.whole.parameters, self.image_size)

    def within(self, name: str, *, same_widths: bool = False) -> SearchSpace:
        """Return the space of the networks that a published network contains.

        Its largest network is the published one, kernel sizes aside, so that published weights fill
        that of its supernet. `nas.space.restriction` says what is left of each choice. The space
        has a name of its own, since its supernet is another one. If nothing is taken from the
        choices, the result is the space itself.

        Args:
            name: of the published network.
            same_widths: whether only networks with the published widths are left.

        Raises SpaceError as `published` does.

        Example:
            >>> from nas.space import load_space
            >>> space = load_space("mobilenet").within("mobilenet_v2_1.0")
            >>> space.name
            'within_mobilenet_v2_1.0'
            >>> space.parameters["stem.width"]
            (16, 24, 32)
        """
        return restricted(self, self.reference_row(name), same_widths=same_widths)

    def with_trained(
        self,
        name: str,
        choices: Mapping[str, Value | tuple[Value, ...]],
        resolution: float = 1.0,
    ) -> SearchSpace:
        """Return this space with a trained network of a run among its references.

        Args:
            name: for the network; `within` then takes it for that of a published one. No kernel in
                the space within a trained network is larger than its own.
            choices: its options; those of resolution and dtype do not count.
            resolution: share of the image size that it is run at, where the space has several.

        Example:
            >>> from nas.space import load_space
            >>> space = load_space("mobilenet_tiny", image_size=8)
            >>> trained = space.sample(seed=0)
            >>> pruned = space.with_trained("run_1", trained.choices).within("run_1")
            >>> pruned.largest.digest == trained.digest
            True
        """
        own = {key: option for key, option in choices.items() if key not in _INPUT_CHOICES}
        row = Reference(name, own, "", resolution=resolution, norm=self.norm, is_trained=True)
        others = [each for each in self.references if each.name != name]
        return replace(self, references=(*others, row))

    def at_resolutions(self, shares: Sequence[float]) -> SearchSpace:
        """Return the space whose networks can run at some shares of the image size.

        A published network runs at the largest of them, so that `within` takes none of them away.

        Args:
            shares: fractions of the image size, in the place of `resolutions`.

        Example:
            >>> from nas.space import load_space
            >>> space = load_space("mobilenet", image_size=96).at_resolutions((0.75, 1.0))
            >>> space.parameters["resolution"]
            (72, 96)
        """
        rows = [replace(row, resolution=max(shares, default=1.0)) for row in self.references]
        return replace(self, resolutions=tuple(shares), references=tuple(rows))

    def with_exit(self, stage: str) -> SearchSpace:
        """Return the space whose trained networks have an exit behind a stage.

        Example:
            >>> from nas.space import load_space
            >>> load_space("mobilenet", image_size=32).with_exit("stage3").exit
            'stage3'
        """
        return replace(self, exit=stage)

    @cached_property
    def whole(self) -> SearchSpace:
        """The space with all options of its table."""
        return replace(self, narrowed={}) if self.narrowed else self

    def reference_row(self, name: str) -> Reference:
        """Return a row of `references`. Raises SpaceError for an unknown name."""
        for row in self.references:
            if row.name == name:
                return row
        known = [row.name for row in self.references]
        raise unknown_reference_error(f" in space {self.name}", name, known)

    # All architectures

    @property
    def size(self) -> int:
        """The number of different networks."""
        return self._deterministic_automaton.size

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
        require_choice(uniform_over, ("networks", "choices"), "uniform_over", SpaceError)
        rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
        if uniform_over == "networks":
            return self._canonical(self._deterministic_automaton.sample(rng))
        return self.architecture(
            {key: options[rng.integers(len(options))] for key, options in self.parameters.items()}
        )

    def enumerate(self) -> Iterator[Architecture]:
        """Iterate over every architecture once. Look at `size` first."""
        for ops in self._deterministic_automaton.op_sequences():
            yield self._canonical(ops)

    @property
    def largest(self) -> Architecture:
        """The architecture with the most MACs; among equals, the one with the earlier options."""
        return self.extreme("macs", "largest")

    @property
    def smallest(self) -> Architecture:
        """The architecture with the fewest MACs; among equals, the one with the earlier options."""
        return self.extreme("macs", "smallest")

    def extreme(self, count: str, end: End) -> Architecture:
        """Return the architecture with the smallest or largest count of all, without a search.

        Args:
            count: name of the count, see `nas.figures.COUNTS`.
            end: which end of its range.
        """
        if (count, end) not in self._extremes:
            best = self.automaton.extreme(count, end)
            choices = {name: options[0] for name, options in self.parameters.items()}
            self._extremes[count, end] = self.architecture({**choices, **dict(best)})
        return self._extremes[count, end]

    @cached_property
    def automaton(self) -> NetworkAutomaton:
        """The networks of the space as op sequences that a finite automaton accepts."""
        return NetworkAutomaton(self._lowering)

    @cached_property
    def _deterministic_automaton(self) -> DeterministicAutomaton:
        return DeterministicAutomaton(self.automaton)

    @cached_property
    def _extremes(self) -> dict[tuple[str, End], Architecture]:
        return {}

    # Graphs

    def lower(self, architecture: Architecture) -> CompositeGraph:
        """Build the graph of an architecture of this space, without checking its choices again.

        `Architecture.graph` is the same graph from a cache.

        Raises SpaceError where the choices make no network.
        """
        try:
            input_op, blocks = self._lowering.walk(dict(architecture.choices))
        except KeyError as error:
            raise SpaceError(
                f"This architecture of space {architecture.space.name} has no choice {error}, "
                f"which space {self.name} needs.",
                remedy="Make architectures with the space that lowers them.",
            ) from error
        return CompositeGraph(input_op, blocks)

    @cached_property
    def graph_cache(self) -> Callable[[Architecture], CompositeGraph]:
        """`lower` with a cache of the last `GRAPH_CACHE_SIZE` graphs."""
        return lru_cache(GRAPH_CACHE_SIZE)(self.lower)

    def block_graphs(self) -> Iterator[Graph]:
        """Iterate over every block by itself, for every input shape that can reach it.

        Kernels depend on nothing beyond the neighbouring block, so the kernels of these graphs are
        those of all architectures, found without enumerating the architectures. Exits are blocks,
        too.
        """
        yield from exit_graphs(self)
        seen: set[Any] = set()
        for transition in self.automaton.all_transitions():
            if transition.block is not None:
                key = (transition.block.graph.input_shape, transition.ops)
                if key not in seen:
                    seen.add(key)
                    yield transition.block.graph

    def block_graphs_with_slots(self) -> Iterator[Graph]:
        """Iterate over blocks with the slots of the space; together they use every slot.

        The weights of a supernet are allocated from these graphs, also those of exits.
        """
        return self._lowering.block_graphs_with_slots()

    @cached_property
    def _lowering(self) -> Lowering:
        return Lowering(self)

    def new_builder(self, shape: Shape, channels: Channels) -> Builder:
        """Return a builder with the settings of the space, for a block with this input."""
        return Builder(
            shape,
            classes=self.classes,
            norm=self.norm,
            activation=self.activation,
            channels=channels,
        )

    # Identity

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """What tells the spaces of a program apart: the name, the settings and the norms."""
        return self.name, self.image_size, self.channels, self.classes, self.norm

    @cached_property
    def digest(self) -> str:
        """16 hex digits over the table, the settings, and the ops and slots of the blocks.

        The dtypes do not count: tables and supernets are the same with and without them.
        """
        table = [stage.to_json() for stage in self.compiled_stages]
        wide = [
            [choice.name, choice.to_json()]
            for choice in self.network_choices
            if choice.argument != "dtype"
        ]
        graphs = list(self.block_graphs_with_slots())
        blocks = [graph.text for graph in graphs]
        slots = [op.slot for graph in graphs for op in graph.ops]
        settings = [self.name, self.activation, self.norm, self.settings]
        if self.exit:
            settings.append(self.exit)
        if self.narrowed:
            settings.append({name: list(options) for name, options in self.narrowed.items()})
        text = json.dumps([*settings, wide, table, blocks, slots])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __reduce__(self) -> tuple[Any, ...]:
        # What a space caches holds functions that cannot be pickled; its table can be.
        return SearchSpace, tuple([getattr(self, each.name) for each in fields(self)])


def _require_all(kind: type, name: str, values: object, where: str) -> None:
    if not isinstance(values, tuple | list) or not all(isinstance(v, kind) for v in values):
        raise SpaceError(
            f"{where}: {name} is {shortened(values)}.", remedy=f"Give a tuple of {kind.__name__}s."
        )


def _require_unique(message: str, names: Sequence[str]) -> None:
    for position, name in enumerate(names):
        if name in names[:position]:
            raise SpaceError(f"{message} called {name!r}.", remedy="Give each a name of its own.")
