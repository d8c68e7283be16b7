"""`FusedBlocks`: the kernels of networks, from what a runtime's optimiser makes of their blocks.

A runtime that optimises model files fuses ops, and chooses the layout of each tensor: a plain one,
channels first, or one that it prefers, such as blocks of channels. So it is asked once for each
block. What is next to a block matters only by the layout in which its input arrives (`Entry`), and
by that in which its output is wanted (`Exit`). The kernels of any network follow from those of its
blocks, without the runtime. Whoever reads a tensor converts it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from nas.graph import Graph, Shape
from nas.kernels.kernel import Kernel

Entry = Literal["image", "plain", "preferred"]
"""What enters a block: the image of a network, or a tensor in one of the two layouts."""

Exit = Literal["conv", "linear", "pool", "shuffle", "end"]
"""What reads the output of a block: ops that want the preferred layout, like a convolution; linear
layers; global pools; ops that want the plain layout, like a channel shuffle; or nothing, at the end
of the network."""

_HEADS: Mapping[str, Exit] = {"linear": "linear", "global_pool": "pool"}
"""Exits before blocks of which only ops of one kind read the input."""


class Place(NamedTuple):
    """A block and where it stands.

    Attributes:
        digest: digest of the folded block.
        entry: what enters it.
        exit: what reads its output.
        batch: number of images that run at once.
    """

    digest: str
    entry: Entry
    exit: Exit
    batch: int = 1


class FusedBlock(NamedTuple):
    """What a runtime makes of a block in a place.

    Attributes:
        kernels: the kernels, in an order in which they can run; None if a latency table knows of
            the block, but not all of its kernels.
        is_preferred: whether the output has the preferred layout.
        wants_preferred: whether an input in the preferred layout would be read as it is.
    """

    kernels: tuple[Kernel, ...] | None
    is_preferred: bool
    wants_preferred: bool

    @property
    def output(self) -> Entry:
        """As what the output enters the next block."""
        return "preferred" if self.is_preferred else "plain"


class FusedBlocks:
    """What a runtime makes of blocks, remembered.

    Args:
        ask: function that asks the runtime what it makes of a folded block in a place.

    Attributes:
        asked: what the runtime answered.
        recall: function that is asked before the runtime; it returns None for what it does not
            know.
        permit: function that is called before the runtime is asked. It raises an error where this
            machine's runtime is not that of the device.
    """

    def __init__(self, ask: Callable[[Graph, Place], FusedBlock]) -> None:
        self._ask = ask
        self.asked: dict[Place, FusedBlock] = {}
        self.recall: Callable[[Place], FusedBlock | None] = lambda place: None
        self.permit: Callable[[], None] = lambda: None

    def network(self, graph: Graph, batch: int = 1) -> list[tuple[Kernel, ...]]:
        """Return the kernels of each of the segments of a network."""
        blocks = [each.folded for each in graph.segments]
        exits: list[Exit] = ["end"]
        for block in reversed(blocks[1:]):
            exits.append(self._wanted(block, exits[-1], batch))
        kernels: list[tuple[Kernel, ...]] = []
        entry: Entry = "image"
        for block, wanted in zip(blocks, reversed(exits), strict=True):
            kernels.append(self._kernels(block, entry, wanted, batch))
            entry = self._at(block, entry, wanted, batch).output
        return kernels

    def kernels(self, blocks: Iterable[Graph], batch: int = 1) -> list[Kernel]:
        """Return the kernels that blocks have in any network that consists of them, once each.

        A block may follow every block whose output has the shape of its input. Images enter those
        that follow none.
        """
        own = list(dict.fromkeys(block.folded for block in blocks))
        kernels: dict[Kernel, None] = {}
        for block, entry, wanted in self._places(own, self._exits(own, batch), batch):
            kernels.update(dict.fromkeys(self._kernels(block, entry, wanted, batch)))
        return list(kernels)

    def _exits(self, blocks: list[Graph], batch: int) -> dict[Graph, set[Exit]]:
        """Return the exits that each block can have."""
        readers = _by_shape(blocks, lambda block: block.input_shape)
        exits: dict[Graph, set[Exit]] = {block: set() for block in blocks}
        for block in blocks:
            if not readers[block.output_shape] or block.output_shape[1:] == (1, 1):
                exits[block].add("end")
        writers = _by_shape(blocks, lambda block: block.output_shape)
        changed = [block for block in blocks if exits[block]]
        while changed:
            block = changed.pop()
            wanted = {self._wanted(block, each, batch) for each in exits[block]}
            for writer in writers[block.input_shape]:
                if not wanted <= exits[writer]:
                    exits[writer] |= wanted
                    changed.append(writer)
        return exits

    def _places(
        self, blocks: list[Graph], exits: dict[Graph, set[Exit]], batch: int
    ) -> Iterator[tuple[Graph, Entry, Exit]]:
        """Yield each block with each of its entries and exits."""
        readers = _by_shape(blocks, lambda block: block.input_shape)
        seen: set[tuple[Graph, Entry]] = set()
        left: list[tuple[Graph, Entry]] = [(block, "image") for block in entered_by_images(blocks)]
        while left:
            block, entry = place = left.pop()
            if place in seen:
                continue
            seen.add(place)
            for wanted in sorted(exits[block]):
                yield block, entry, wanted
                output = self._at(block, entry, wanted, batch).output
                left += [(reader, output) for reader in readers[block.output_shape]]

    def _wanted(self, block: Graph, wanted: Exit, batch: int) -> Exit:
        """Return what a block is for the one before it; `wanted` is its own exit."""
        kinds = {block.ops[at].kind for at in block.consumers[0]}
        if len(kinds) == 1 and (head := _HEADS.get(*kinds)):
            return head
        wants_preferred = self._at(block, "preferred", wanted, batch).wants_preferred
        return "conv" if wants_preferred else "shuffle"

    def _at(self, block: Graph, entry: Entry, wanted: Exit, batch: int) -> FusedBlock:
        place = Place(block.digest, entry, wanted, batch)
        return self.recall(place) or self._answer(block, place)

    def _kernels(self, block: Graph, entry: Entry, wanted: Exit, batch: int) -> tuple[Kernel, ...]:
        kernels = self._at(block, entry, wanted, batch).kernels
        if kernels is None:
            kernels = self._answer(block, Place(block.digest, entry, wanted, batch)).kernels
        assert kernels is not None
        return kernels

    def _answer(self, block: Graph, place: Place) -> FusedBlock:
        if place not in self.asked:
            self.permit()
            self.asked[place] = self._ask(block, place)
        return self.asked[place]


def entered_by_images(blocks: Collection[Graph]) -> list[Graph]:
    """Return the blocks that images enter: no other block makes what they read.

    If there is none, images may enter all, which then are blocks of no whole network.
    """
    makers = _by_shape(blocks, lambda block: block.output_shape)
    entered = [block for block in blocks if set(makers[block.input_shape]) <= {block}]
    return entered or list(blocks)


def _by_shape(
    blocks: Iterable[Graph], shape_of: Callable[[Graph], Shape]
) -> defaultdict[Shape, list[Graph]]:
    groups: defaultdict[Shape, list[Graph]] = defaultdict(list)
    for block in blocks:
        groups[shape_of(block)].append(block)
    return groups
