"""`Stage`, a row of a space's table, and `BlockSelection`, the block functions of a stage."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from nas.errors import SpaceError
from nas.files.documents import shortened
from nas.space.architecture import Value
from nas.space.blocks import BLOCKS, Block
from nas.space.choice import Options


@dataclass(frozen=True)
class Stage:
    """A row of a space's table: a block that is repeated `depth` times.

    Every tuple is a choice among its values and every mapping a choice among named bundles of
    arguments (see `nas.space.choice.Choice`); a single value leaves nothing to choose.

    Args:
        name: unique in the space; choices are called `<name>.width`, `<name>.depth`, ...
        block: a name in `nas.space.blocks.BLOCKS`, or a block function of your own.
        width: number of output channels.
        depth: number of blocks.
        stride: of the first block at the full input size; see `SearchSpace.strides`. A mapping
            gives a stride for each option of the network-wide choice that has these options.
        per_stage: further choices of the block, made once for all blocks of the stage.
        per_block: further choices, made for each block: `<name>.<position>.<choice>`.
        entry: the block that stands first in the stage, if that is another one.

    Example:
        >>> stage = Stage("body", "inverted_residual", width=(16, 24), depth=(1, 2), stride=2,
        ...               per_block={"kernel": (3, 5), "expand": 3})
    """

    name: str
    block: str | Block
    width: int | tuple[int, ...] = ()
    depth: int | tuple[int, ...] = 1
    stride: int | Mapping[Value, int] = 1
    per_stage: Mapping[str, Options] = field(default_factory=dict)
    per_block: Mapping[str, Options] = field(default_factory=dict)
    entry: str | Block | None = None


class BlockSelection:
    """The block functions that can stand in one place: one, or those that a choice selects from.

    Attributes:
        keywords: all arguments that any of the block functions takes.
    """

    def __init__(self, where: str, default: str | Block, *choices: Mapping[str, Options]) -> None:
        """Look the block functions up.

        Args:
            where: place in the table, for messages.
            default: the block where no choice selects another one.
            choices: the choices of the stage, whose bundles may have the argument `block`.

        Raises SpaceError for a name that no block has.
        """
        self._where = where
        self._default = self._block_function(default)
        bundles = [
            bundle
            for options in (options for given in choices for options in given.values())
            if isinstance(options, Mapping)
            for bundle in options.values()
            if isinstance(bundle, Mapping)
        ]
        others = [self._block_function(bundle["block"]) for bundle in bundles if "block" in bundle]
        self._all = list(dict.fromkeys([self._default, *others]))
        self.keywords = frozenset().union(*(block_keywords(block).known for block in self._all))

    def select(self, arguments: dict[str, Any], name: str) -> tuple[Block, str]:
        """Return the block that `arguments` ask for, and the prefix of its weights' names.

        Different blocks in one place have weights of their own, so their prefixes differ. The
        argument `block` is removed from `arguments`.
        """
        block = self._block_function(arguments.pop("block", self._default))
        return block, name if len(self._all) == 1 else f"{name}.{block.__name__}"

    def to_json(self) -> list[str]:
        """Return the names of the block functions with their modules."""
        return [f"{block.__module__}.{block.__qualname__}" for block in self._all]

    def _block_function(self, block: str | Block) -> Block:
        # A block function needs its name for messages; functools.partial objects have none.
        if not isinstance(block, str) and callable(block) and hasattr(block, "__qualname__"):
            return block
        if not isinstance(block, str) or block not in BLOCKS:
            raise SpaceError(
                f"{self._where}: there is no block {shortened(block)}.",
                remedy=f"Blocks: {', '.join(BLOCKS)}; or give a function of your own.",
            )
        return BLOCKS[block]


class BlockKeywords(NamedTuple):
    """The names of a block function's keyword-only parameters: the choices that it takes."""

    known: frozenset[str]
    required: frozenset[str]


@cache
def block_keywords(block: Block) -> BlockKeywords:
    """Return the keyword-only parameters of a block function, and those without a default."""
    parameters = [
        p for p in inspect.signature(block).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    return BlockKeywords(
        frozenset(p.name for p in parameters),
        frozenset(p.name for p in parameters if p.default is p.empty),
    )


def source_file(block: Block) -> str:
    """Return the path of the file that a block function stands in; empty where it is unknown."""
    code = getattr(inspect.unwrap(block), "__code__", None)
    return "" if code is None else str(code.co_filename)
