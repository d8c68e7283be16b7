"""`Stage`: a row of a space's table, and `Row`: the same row ready to lower."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from nas.errors import SpaceError
from nas.graph import Graph, Shape
from nas.space.architecture import Value
from nas.space.blocks import BLOCKS, Block
from nas.space.builder import Builder, Elastic, Tensor


@dataclass(frozen=True)
class Stage:
    """A row of a space's table: a block repeated `depth` times.

    Every tuple is a choice among its values; a single value is no choice.

    Args:
        name: unique in the space; choices are called `<name>.width`, `<name>.depth`, ...
        block: a name in `nas.space.blocks.BLOCKS`, or a block function of your own.
        width: output channels.
        depth: how many blocks.
        stride: of the first block at the full input size; see `SearchSpace.strides`.
        per_stage: further choices of the block, made once for all blocks of the stage.
        per_block: further choices, made for each block: `<name>.<position>.<choice>`.
        entry: the block that stands first in the stage, if it is another one.
    """

    name: str
    block: str | Block
    width: int | tuple[int, ...] = ()
    depth: int | tuple[int, ...] = 1
    stride: int = 1
    per_stage: Mapping[str, Value | tuple[Value, ...]] = field(default_factory=dict)
    per_block: Mapping[str, Value | tuple[Value, ...]] = field(default_factory=dict)
    entry: str | Block | None = None


class Row:
    """A stage made ready: choices named, options as tuples, blocks looked up."""

    def __init__(self, space: str, stage: Stage) -> None:
        self.stage = stage
        self.where = f"Space {space}, stage {stage.name}"
        self.widths = _options(stage.width)
        self.depths = _options(stage.depth)
        self.per_stage = {key: self._checked(key, o) for key, o in stage.per_stage.items()}
        self.per_block = {key: self._checked(key, o) for key, o in stage.per_block.items()}
        self.body = self._block(stage.block)
        self.entry = self.body if stage.entry is None else self._block(stage.entry)
        if not self.depths or min(self.depths) < 1:
            raise SpaceError(f"{self.where}: depth is {stage.depth!r}.", remedy="Use 1 or more.")
        if stage.stride not in (1, 2):
            raise SpaceError(f"{self.where}: stride is {stage.stride!r}.", remedy="Use 1 or 2.")
        self._check_choices()
        self._positions = [
            [(key, f"{stage.name}.{position}.{key}") for key in self.per_block]
            for position in range(max(self.depths))
        ]

    def parameters(self) -> Iterator[tuple[str, tuple[Value, ...]]]:
        """Choices with more than one option, in the table's order."""
        yield from self._named({"width": self.widths, "depth": self.depths, **self.per_stage})
        for position in range(max(self.depths)):
            for key, options in self.per_block.items():
                if len(options) > 1:
                    yield f"{self.stage.name}.{position}.{key}", options

    def used(self, choices: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Value, ...]]]:
        """The parameters that matter at the depth that `choices` has."""
        yield from self._named({"width": self.widths, "depth": self.depths, **self.per_stage})
        for names in self._positions[: self._depth(choices)]:
            for key, name in names:
                if len(self.per_block[key]) > 1:
                    yield name, self.per_block[key]

    def size(self) -> int:
        """The number of canonical choices of the row."""
        per_block = math.prod(map(len, self.per_block.values()))
        return (
            max(1, len(self.widths))
            * math.prod(map(len, self.per_stage.values()))
            * sum(per_block**depth for depth in self.depths)
        )

    def lower(self, build: Builder, x: Tensor, choices: Mapping[str, Any], stride: int) -> Tensor:
        """Adds the row's blocks behind `x`."""
        name = self.stage.name
        shared: dict[str, Any] = {
            key: _chosen(choices, f"{name}.{key}", options)
            for key, options in self.per_stage.items()
        }
        if self.widths:
            shared["width"] = _chosen(choices, f"{name}.width", self.widths)
        depth = self._depth(choices)
        for position in range(depth):
            own = {
                key: _chosen(choices, at, self.per_block[key])
                for key, at in self._positions[position]
            }
            prefix = name if max(self.depths) == 1 else f"{name}.{position}"
            x = self._place(build, x, prefix, position, {**shared, **own}, stride)
        return x

    def fragments(
        self, shapes: set[Shape], stride: int, builder: Callable[[Shape], Builder]
    ) -> Iterator[tuple[Graph, bool]]:
        """Single blocks as graphs, and whether the block can stand last in the stage."""
        keys = [*self.per_stage, *(("width",) if self.widths else ())]
        options = [*self.per_stage.values(), *((self.widths,) if self.widths else ())]
        for shared in product(*options):
            frontier = shapes
            for position in range(max(self.depths)):
                leaving: set[Shape] = set()
                for shape, own in product(sorted(frontier), product(*self.per_block.values())):
                    choices = {
                        key: _choice(value, (value,))
                        for key, value in zip(
                            [*keys, *self.per_block], [*shared, *own], strict=True
                        )
                    }
                    build = builder(shape)
                    out = self._place(
                        build, build.input, self.stage.name, position, choices, stride
                    )
                    leaving.add(out.shape)
                    yield build.graph(), position + 1 in self.depths
                frontier = leaving

    def describe(self) -> list[Any]:
        """The row as plain data, for the space's digest."""
        blocks = [f"{block.__module__}.{block.__qualname__}" for block in (self.entry, self.body)]
        sizes = [list(self.widths), list(self.depths), self.stage.stride]
        return [self.stage.name, blocks, sizes, dict(self.per_stage), dict(self.per_block)]

    def _place(
        self,
        build: Builder,
        x: Tensor,
        prefix: str,
        position: int,
        choices: dict[str, Any],
        stride: int,
    ) -> Tensor:
        block = self.entry if position == 0 else self.body
        accepted = _keywords(block)
        arguments = {key: value for key, value in choices.items() if key in accepted}
        if "stride" in accepted:
            arguments["stride"] = stride if position == 0 else 1
        try:
            return block(build, x, prefix, **arguments)
        except SpaceError as error:
            raise SpaceError(f"{self.where}: {error.message}", remedy=error.remedy) from error

    def _depth(self, choices: Mapping[str, Any]) -> int:
        if len(self.depths) == 1:
            return self.depths[0]
        depth: int | None = choices.get(f"{self.stage.name}.depth")
        return max(self.depths) if depth is None else depth

    def _named(
        self, choices: Mapping[str, tuple[Any, ...]]
    ) -> Iterator[tuple[str, tuple[Value, ...]]]:
        for key, options in choices.items():
            if len(options) > 1:
                yield f"{self.stage.name}.{key}", options

    def _checked(self, key: str, value: Value | tuple[Value, ...]) -> tuple[Value, ...]:
        options = _options(value)
        if not options or len(set(options)) != len(options):
            raise SpaceError(
                f"{self.where}: the options of {key} are {value!r}.",
                remedy="Give one value, or a tuple of different values.",
            )
        if len({isinstance(option, str) for option in options}) > 1:
            raise SpaceError(f"{self.where}: {key} mixes names and numbers: {value!r}.")
        return options

    def _block(self, block: str | Block) -> Block:
        if not isinstance(block, str):
            return block
        if block not in BLOCKS:
            raise SpaceError(
                f"{self.where}: there is no block {block!r}.",
                remedy=f"Blocks: {', '.join(BLOCKS)}; or give a function of your own.",
            )
        return BLOCKS[block]

    def _check_choices(self) -> None:
        """Every block gets all the choices that it needs, and every choice has a taker."""
        given = {*self.per_stage, *self.per_block, *(("width",) if self.widths else ())}
        blocks = (self.entry, self.body) if max(self.depths) > 1 else (self.entry,)
        for block in blocks:
            missing = _keywords(block) - given - {"stride"}
            if missing:
                raise SpaceError(
                    f"{self.where}: block {block.__name__} needs {', '.join(sorted(missing))}."
                )
        known = frozenset().union(*map(_keywords, blocks)) - {"stride"}
        if given - known:
            raise SpaceError(
                f"{self.where}: no block takes {', '.join(sorted(given - known))}.",
                remedy=f"Known here: {', '.join(sorted(known)) or 'none'}.",
            )


def _options(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _chosen(choices: Mapping[str, Any], key: str, options: Sequence[Value]) -> Elastic | str:
    return _choice(options[0] if len(options) == 1 else choices[key], options)


def _choice(value: Value, options: Sequence[Value]) -> Elastic | str:
    return value if isinstance(value, str) else Elastic.among(value, options)  # type: ignore[arg-type]


_KEYWORDS: dict[Block, frozenset[str]] = {}


def _keywords(block: Block) -> frozenset[str]:
    """The keyword-only parameters of a block: the choices it understands."""
    if block not in _KEYWORDS:
        parameters = inspect.signature(block).parameters.values()
        _KEYWORDS[block] = frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    return _KEYWORDS[block]
