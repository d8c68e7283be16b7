"""`Stage`: a row of a space's table, and `Row`: the same row ready to lower."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from operator import itemgetter
from typing import Any, NamedTuple

from nas.documents import shortened
from nas.errors import SpaceError, printable
from nas.graph import Channels, Graph, Shape
from nas.names import require_identifier
from nas.space.architecture import Value
from nas.space.block_graph import Part
from nas.space.blocks import BLOCKS, Block
from nas.space.builder import Builder, Elastic
from nas.space.choice import MAX_SIZE, Choice, Options, sizes
from nas.space.user_code import user_code

MAX_DEPTH = 1000
"""Most blocks of a stage: published networks have fewer than a hundred."""

Values = tuple[Any, ...]
"""Options, one for each of a list of choices."""

Reached = tuple[Shape, Channels]
"""A tensor that arrives at a block."""

NewBuilder = Callable[[Shape, Channels], Builder]
"""Starts a block behind a tensor of this shape, which is these channels of its widest version."""


@dataclass(frozen=True)
class Stage:
    """A row of a space's table: a block repeated `depth` times.

    Every tuple is a choice among its values, and a mapping a choice among named bundles of
    arguments (see `nas.space.choice.Choice`); a single value is no choice.

    Args:
        name: unique in the space; choices are called `<name>.width`, `<name>.depth`, ...
        block: a name in `nas.space.blocks.BLOCKS`, or a block function of your own.
        width: output channels.
        depth: how many blocks.
        stride: of the first block at the full input size; see `SearchSpace.strides`. A mapping
            gives one for each option of the network-wide choice that has these options.
        per_stage: further choices of the block, made once for all blocks of the stage.
        per_block: further choices, made for each block: `<name>.<position>.<choice>`.
        entry: the block that stands first in the stage, if it is another one.
    """

    name: str
    block: str | Block
    width: int | tuple[int, ...] = ()
    depth: int | tuple[int, ...] = 1
    stride: int | Mapping[Value, int] = 1
    per_stage: Mapping[str, Options] = field(default_factory=dict)
    per_block: Mapping[str, Options] = field(default_factory=dict)
    entry: str | Block | None = None


class Row:
    """A stage made ready: choices named, blocks looked up, arguments checked.

    Args:
        space: its name, for messages.
        stage: the row of the table.
        network: the choices that are made once for the whole network.

    Raises SpaceError, naming the stage and what would be accepted.
    """

    def __init__(self, space: str, stage: Stage, network: Sequence[Choice]) -> None:
        self.stage = stage
        self.where = f"Space {space}, stage {stage.name}"
        for key in (*stage.per_stage, *stage.per_block):
            require_identifier(key, self.where, SpaceError)
        self.depths = sizes(self.where, "depth", stage.depth, MAX_DEPTH)
        self.depth_name = f"{stage.name}.depth"
        self.shared = self._shared_choices()
        body = _Blocks(self.where, stage.block, stage.per_stage, stage.per_block)
        entry = body
        if stage.entry is not None:
            entry = _Blocks(self.where, stage.entry, stage.per_stage, stage.per_block)
        self._blocks = [entry, *[body] * (max(self.depths) - 1)]
        self.own = [self._own_choices(position) for position in range(max(self.depths))]
        self.governing = self._governing_choice(network)
        known = entry.known | self._blocks[-1].known
        self.network = [
            choice
            for choice in network
            if choice is self.governing or any(known & passed.keys() for passed in choice.passed())
        ]
        self._taken = [network.index(choice) for choice in self.network]
        self._choices = [[*self.network, *self.shared, *own] for own in self.own]
        self._check_arguments()
        self._ranges = self._argument_ranges()
        single = max(self.depths) == 1
        self.names = [stage.name if single else f"{stage.name}.{i}" for i in range(len(self.own))]
        self._parts: dict[Any, Part | None] = {}
        self._used = {
            depth: tuple(
                (name, options)
                for name, options in self.parameters()
                if name not in {choice.name for own in self.own[depth:] for choice in own}
            )
            for depth in self.depths
        }
        self._chosen = [_picker(choices) for choices in self._choices]
        self._following: list[dict[Any, Part | None]] = [{} for _ in self.own]

    # Choices

    def parameters(self) -> Iterator[tuple[str, tuple[Value, ...]]]:
        """The stage's choices with their options, in the table's order."""
        yield from _real([choice for choice in self.shared if choice.key == "width"])
        if len(self.depths) > 1:
            yield self.depth_name, self.depths
        yield from _real([choice for choice in self.shared if choice.key != "width"])
        for own in self.own:
            yield from _real(own)

    def used(self, choices: Mapping[str, Any]) -> tuple[tuple[str, tuple[Value, ...]], ...]:
        """The parameters that matter at the depth that `choices` has."""
        return self._used[self.depth(choices)]

    def combinations(self) -> int:
        """How many different choices the row has, whatever they make."""
        shared = math.prod(len(choice.options) for choice in self.shared)
        own = [math.prod(len(choice.options) for choice in own) for own in self.own]
        return shared * sum(math.prod(own[:depth]) for depth in self.depths)

    def depth(self, choices: Mapping[str, Any]) -> int:
        """How many blocks the stage has."""
        if len(self.depths) == 1:
            return self.depths[0]
        depth = choices.get(self.depth_name)
        return depth if depth in self.depths else max(self.depths)

    def stride(self, network: Mapping[str, Value]) -> int:
        """The stride in the table, for these network-wide choices."""
        stride = self.stage.stride
        if isinstance(stride, int):
            return stride
        assert self.governing is not None
        return stride[network[self.governing.name]]

    def taken(self, options: Values) -> Values:
        """Of options of all network-wide choices, those that this row depends on."""
        return tuple([options[position] for position in self._taken])

    # Lowering

    def lower(
        self, x: Part, choices: Mapping[str, Any], stride: int, builder: NewBuilder
    ) -> Iterator[tuple[Part, str]]:
        """The stage's parts behind `x`, each with its name.

        What stands behind what is remembered: a space is lowered thousands of times a second.
        """
        for position in range(self.depth(choices)):
            key = (x, stride, self._chosen[position](choices))
            known = self._following[position]
            if key not in known:
                values = tuple([choice.value(choices) for choice in self._choices[position]])
                known[key] = self.part(x.shape, x.channels, position, values, stride, builder)
            part = known[key]
            if part is not None:
                yield part, self.names[position]
                x = part

    def part(
        self,
        shape: Shape,
        channels: Channels,
        position: int,
        values: Values,
        stride: int,
        builder: NewBuilder,
    ) -> Part | None:
        """The block at `position` behind a tensor; None where it is left out or adds nothing.

        `values` are the options of `network`, `shared` and `own[position]`, in this order.
        """
        first = position == 0
        key = (shape, channels, first, values, stride if first else 1)
        if key not in self._parts:
            self._parts[key] = self._build(shape, channels, position, values, key[-1], builder)
        return self._parts[key]

    def placed_blocks(
        self,
        reached: Mapping[int, Reached],
        leaving: dict[int, Reached],
        network: Values,
        stride: int,
        builder: NewBuilder,
    ) -> Iterator[Graph]:
        """Graphs of the row's blocks in their places, for `SearchSpace.placed_blocks`.

        `reached` holds a tensor for each widest version that can arrive, and `leaving` gets one for
        each that can leave.
        """
        for shared in product(*[choice.options for choice in self.shared]):
            arriving = reached
            for position, own in enumerate(self.own):
                after: dict[int, Reached] = {}
                for x, chosen in product(
                    arriving.values(), product(*[choice.options for choice in own])
                ):
                    values = (*network, *shared, *chosen)
                    part = self.part(*x, position, values, stride, builder)
                    out = x if part is None else (part.shape, part.channels)
                    after.setdefault(out[1].extent, out)
                    if part is not None:
                        image = part.graph.ops[0]
                        yield Graph((image, *part.placed(0, self.names[position])))
                arriving = after
                if position + 1 in self.depths:
                    leaving.update({k: v for k, v in after.items() if k not in leaving})

    def describe(self) -> list[Any]:
        """The row as plain data, for the space's digest."""
        stage = self.stage
        stride = stage.stride if isinstance(stage.stride, int) else list(stage.stride.items())
        choices = [[choice.key, choice.describe()] for choice in (*self.shared, *self.own[-1])]
        blocks = [self._blocks[0].describe(), self._blocks[-1].describe()]
        return [stage.name, blocks, list(self.depths), stride, choices]

    def _build(
        self,
        shape: Shape,
        channels: Channels,
        position: int,
        values: Values,
        stride: int,
        builder: NewBuilder,
    ) -> Part | None:
        arguments: dict[str, Any] = {}
        left_out = False
        for choice, value in zip(self._choices[position], values, strict=True):
            passed = choice.arguments(value)
            left_out |= passed is None
            arguments.update(passed or {})
        if left_out:
            self._check_identity(shape, position, arguments.get("width"), stride)
            return None
        block, name = self._blocks[position].picked(arguments, self.stage.name)
        known = _keywords(block).known
        given = {key: self._sized(key, v) for key, v in arguments.items() if key in known}
        if "stride" in known:
            given["stride"] = stride
        build = builder(shape, channels)
        try:
            with user_code(_file(block), f"block {block.__name__}"):
                out = block(build, build.input, name, **given)
                part = Part(build.graph(), out, self.stage.name)
            return part if part.word else None
        except SpaceError as error:
            chosen = ", ".join(
                f"{key} {printable(str(value))}" for key, value in _plain(arguments).items()
            )
            raise SpaceError(
                f"{self.where}: {error.message} (Block {block.__name__} with "
                f"{chosen or 'no choices'} on {'x'.join(map(str, shape))}.)",
                remedy=error.remedy,
            ) from error

    def _sized(self, key: str, value: Any) -> Any:
        """An argument as a block takes it: sizes with the range they have over the space."""
        return Elastic(value, *self._ranges[key]) if key in self._ranges else value

    def _check_identity(self, shape: Shape, position: int, width: int | None, stride: int) -> None:
        if stride == 1 and width in (None, shape[0]):
            return
        raise SpaceError(
            f"{self.where}: block {position} cannot be left out: it turns {shape[0]} channels "
            f"into {width or shape[0]}, with stride {stride}.",
            remedy="Give the stage an `entry` block, which is never left out.",
        )

    # Reading the table

    def _shared_choices(self) -> list[Choice]:
        given = dict(self.stage.per_stage)
        if self.stage.width != ():
            given = {"width": sizes(self.where, "width", self.stage.width, MAX_SIZE), **given}
        return [
            Choice(self.where, f"{self.stage.name}.{key}", key, options)
            for key, options in given.items()
        ]

    def _own_choices(self, position: int) -> list[Choice]:
        """The choices that the block at a position has: those that it takes.

        The first block of a stage is not left out where it has work of its own to do.
        """
        found = []
        kept = position == 0 and (self.stage.entry is not None or self.stage.stride != 1)
        for key, options in self.stage.per_block.items():
            if kept and isinstance(options, Mapping):
                options = {name: bundle for name, bundle in options.items() if bundle is not None}
            choice = Choice(self.where, f"{self.stage.name}.{position}.{key}", key, options)
            takes = self._blocks[position].known | {"block"}
            has_identity = any(choice.arguments(option) is None for option in choice.options)
            if has_identity or any(takes & passed.keys() for passed in choice.passed()):
                found.append(choice)
        return found

    def _governing_choice(self, network: Sequence[Choice]) -> Choice | None:
        stride = self.stage.stride
        strides = [stride] if isinstance(stride, int) else list(stride.values())
        if any(each not in (1, 2) for each in strides):
            raise SpaceError(f"{self.where}: stride is {shortened(stride)}.", remedy="Use 1 or 2.")
        if isinstance(stride, int):
            return None
        for choice in network:
            if set(choice.options) == set(stride):
                return choice
        raise SpaceError(
            f"{self.where}: no network-wide choice has exactly the options {list(stride)} that "
            "its strides are given for.",
            remedy=f"There are: {', '.join(f'{c.name} {list(c.options)}' for c in network)}.",
        )

    def _argument_ranges(self) -> dict[str, tuple[float, float]]:
        sizes: dict[str, list[float]] = {}
        for choice in (*self.network, *self.shared, *(c for own in self.own for c in own)):
            for passed in choice.passed():
                for key, value in passed.items():
                    if isinstance(value, int | float):
                        sizes.setdefault(key, []).append(value)
        return {key: (min(values), max(values)) for key, values in sizes.items()}

    def _check_arguments(self) -> None:
        """Every block gets all the choices that it needs, and every choice has a taker."""
        known = self._blocks[0].known | self._blocks[-1].known
        for choice in (*self.shared, *(choice for own in self.own for choice in own)):
            for passed in choice.passed():
                strange = set(passed) - known - {"block"}
                if strange:
                    raise SpaceError(
                        f"{self.where}: no block takes {', '.join(sorted(strange))}.",
                        remedy=f"Known here: {', '.join(sorted(known - {'stride'})) or 'none'}.",
                    )
        for untaken in set(self.stage.per_block) - {c.key for own in self.own for c in own}:
            raise SpaceError(
                f"{self.where}: no block takes {untaken}.",
                remedy=f"Known here: {', '.join(sorted(known - {'stride'})) or 'none'}.",
            )
        for position in {0, len(self.own) - 1}:
            for bundles in product(*[list(c.passed()) for c in self._choices[position]]):
                arguments = {key: value for bundle in bundles for key, value in bundle.items()}
                block, _ = self._blocks[position].picked(arguments, "")
                missing = _keywords(block).required - set(arguments) - {"stride"}
                if missing:
                    raise SpaceError(
                        f"{self.where}: block {block.__name__} needs {', '.join(sorted(missing))}."
                    )


class _Blocks:
    """The blocks that can stand in a place: one, or those that a choice picks among."""

    def __init__(self, where: str, default: str | Block, *choices: Mapping[str, Options]) -> None:
        self._where = where
        self._default = self._found(default)
        bundles = [
            bundle
            for options in (options for given in choices for options in given.values())
            if isinstance(options, Mapping)
            for bundle in options.values()
            if bundle is not None
        ]
        picked = [self._found(bundle["block"]) for bundle in bundles if "block" in bundle]
        self._all = list(dict.fromkeys([self._default, *picked]))
        self.known = frozenset().union(*(_keywords(block).known for block in self._all))

    def picked(self, arguments: dict[str, Any], name: str) -> tuple[Block, str]:
        """The block that `arguments` ask for, and the name of its weights.

        Different blocks in one place have weights of their own.
        """
        block = self._found(arguments.pop("block", self._default))
        return block, name if len(self._all) == 1 else f"{name}.{block.__name__}"

    def describe(self) -> list[str]:
        """Their names, for the space's digest."""
        return [f"{block.__module__}.{block.__qualname__}" for block in self._all]

    def _found(self, block: str | Block) -> Block:
        if not isinstance(block, str) and callable(block) and hasattr(block, "__qualname__"):
            return block
        if not isinstance(block, str) or block not in BLOCKS:
            raise SpaceError(
                f"{self._where}: there is no block {shortened(block)}.",
                remedy=f"Blocks: {', '.join(BLOCKS)}; or give a function of your own.",
            )
        return BLOCKS[block]


def _file(block: Block) -> str:
    """The file that holds the code of a block; empty where it is not known."""
    code = getattr(inspect.unwrap(block), "__code__", None)
    return "" if code is None else str(code.co_filename)


def _picker(choices: Sequence[Choice]) -> Callable[[Mapping[str, Any]], Any]:
    """Reads what was chosen as one key."""
    names = [choice.name for choice in choices if choice.is_real]
    return itemgetter(*names) if names else lambda _: None


def _real(choices: Iterable[Choice]) -> Iterator[tuple[str, tuple[Value, ...]]]:
    for choice in choices:
        if choice.is_real:
            yield choice.name, choice.options


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: getattr(value, "__name__", value) for key, value in arguments.items()}


class _Keywords(NamedTuple):
    """The keyword-only parameters of a block: the choices it understands."""

    known: frozenset[str]
    required: frozenset[str]


@cache
def _keywords(block: Block) -> _Keywords:
    parameters = [
        p for p in inspect.signature(block).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    return _Keywords(
        frozenset(p.name for p in parameters),
        frozenset(p.name for p in parameters if p.default is p.empty),
    )
