"""The networks of a space as the words of a finite language: counted, drawn and listed exactly.

A network is a sequence of ops, so a space is a set of words, and its table is an automaton that
accepts them: a state is a place in the table with the tensor that arrives there, a move is a block
that writes its ops. Different choices can write one word: rounding makes two ratios equal, a
left-out block may stand before or after another, neighbouring stages may share their blocks out
differently. Counting choices counts such networks twice. Counting words does not, and that takes
only the subset construction (Rabin and Scott 1959): at most one state of the deterministic
automaton is reached by each beginning of a word, so its paths are the networks, each once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import product
from typing import NamedTuple, Protocol

import numpy as np

from nas.graph import Channels, Shape
from nas.space.architecture import Value
from nas.space.block_graph import Part, input_token, spelled
from nas.space.builder import Builder
from nas.space.choice import Choice
from nas.space.stage import Row, Values

Word = tuple[int, ...]
"""Ops as the numbers that `nas.space.block_graph.token` gives them."""

Named = tuple[tuple[str, Value], ...]
"""Choices with what was chosen."""


class Table(Protocol):
    """What a language is made from: a `SearchSpace`."""

    @property
    def rows(self) -> tuple[Row, ...]:
        """The stages."""
        ...

    @property
    def network(self) -> tuple[Choice, ...]:
        """The choices made once for the whole network."""
        ...

    def image_shape(self, network: Values) -> Shape:
        """What enters, for options of `network`."""
        ...

    def strides_of(self, network: Values) -> tuple[int, ...]:
        """The rows' strides, for options of `network`."""
        ...

    def builder(self, shape: Shape, channels: Channels) -> Builder:
        """Starts a block."""
        ...


class Move(NamedTuple):
    """A step of the automaton: writes `word` and decides `values`; `part` is the block if any."""

    word: Word
    target: int
    values: Named
    part: Part | None = None


class _Place(NamedTuple):
    """A state: before the block at `position` of a row, with what decides the rest."""

    row: int
    position: int
    network: Values
    shared: Values
    shape: Shape


class Language:
    """The words of a space, and what can be asked of all of them at once.

    States and moves are worked out when they are first met. Raises SpaceError, on the first visit,
    for blocks that cannot be built.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._rows = table.rows
        self._places: list[_Place] = []
        self._numbers: dict[_Place, int] = {}
        self._moves: dict[int, list[Move]] = {}
        self._by_word: dict[int, _ByWord] = {}
        self._subsets: dict[frozenset[_Item], _Subset] = {}
        # Choices that a later row still depends on; others need not be remembered. Which strides
        # a small image drops depends on all strides, so what governs one row concerns every row.
        governing = [row.governing for row in self._rows]
        self._needed = [
            [
                position
                for position, choice in enumerate(table.network)
                if any(choice in row.network for row in self._rows[index:])
                or (choice in governing and index < len(self._rows))
            ]
            for index in range(len(self._rows) + 1)
        ]

    # The automaton

    @cached_property
    def starts(self) -> list[Move]:
        """The first moves, which write the input: one for each network-wide combination."""
        found = []
        for options in product(*[choice.options for choice in self._table.network]):
            shape = self._table.image_shape(options)
            values = _named(self._table.network, options)
            found.append(Move((input_token(shape),), self._enter(0, options, shape), values))
        return found

    def moves(self, state: int) -> list[Move]:
        """The moves from a state, preferred ones first: leave the stage, a block, no block.

        Of moves that write one word and lead to one state only the first is kept.
        """
        if state not in self._moves:
            found: dict[tuple[Word, int], Move] = {}
            for move in self._from(self._places[state]):
                found.setdefault((move.word, move.target), move)
            self._moves[state] = sorted(found.values(), key=lambda m: self._rank(state, m))
        return self._moves[state]

    def _rank(self, state: int, move: Move) -> int:
        if move.word:
            return 1
        return 0 if self._places[move.target].row > self._places[state].row else 2

    def is_end(self, state: int) -> bool:
        """Whether a word may end here."""
        return self._places[state].row == len(self._rows)

    def _from(self, place: _Place) -> Iterator[Move]:
        if place.row == len(self._rows):
            return
        row = self._rows[place.row]
        if place.position == 0:
            for shared in product(*[choice.options for choice in row.shared]):
                named = _named(row.shared, shared)
                yield from self._blocks(place._replace(shared=shared), named)
            return
        if place.position in row.depths:
            depth = ((row.depth_name, place.position),) if len(row.depths) > 1 else ()
            after = self._enter(place.row + 1, self._all_options(place), place.shape)
            yield Move((), after, depth)
        if place.position < max(row.depths):
            yield from self._blocks(place, ())

    def _blocks(self, place: _Place, named: Named) -> Iterator[Move]:
        row, position = self._rows[place.row], place.position
        options = self._all_options(place)
        stride = self._table.strides_of(options)[place.row] if position == 0 else 1
        channels = Channels.prefix(place.shape[0], place.shape[0])
        for own in product(*[choice.options for choice in row.own[position]]):
            values = (*row.taken(options), *place.shared, *own)
            part = row.part(place.shape, channels, position, values, stride, self._table.builder)
            shape = place.shape if part is None else part.shape
            target = self._number(place._replace(position=position + 1, shape=shape))
            chosen = named + _named(row.own[position], own)
            yield Move(() if part is None else part.word, target, chosen, part)

    def _enter(self, row: int, options: Values, shape: Shape) -> int:
        needed = self._needed[row]
        network = tuple([options[i] if i in needed else None for i in range(len(options))])
        return self._number(_Place(row, 0, network, (), shape))

    def _all_options(self, place: _Place) -> Values:
        """Options of the network-wide choices; any will do for those that no longer matter."""
        return tuple(
            [
                choice.options[0] if option is None else option
                for choice, option in zip(self._table.network, place.network, strict=True)
            ]
        )

    def _number(self, place: _Place) -> int:
        number = self._numbers.setdefault(place, len(self._places))
        if number == len(self._places):
            self._places.append(place)
        return number

    def visit(self) -> Iterator[tuple[int, Move]]:
        """Every move of the automaton, once, with the state it starts from."""
        reached = list(dict.fromkeys(move.target for move in self.starts))
        known = set(reached)
        while reached:
            state = reached.pop()
            for move in self.moves(state):
                yield state, move
                if move.target not in known:
                    known.add(move.target)
                    reached.append(move.target)

    # Reading

    def read(self, word: Word) -> Named:
        """The choices that write a word: of several, those preferred at the first difference.

        Raises ValueError for a word that is no network of the space.
        """
        tried: set[tuple[int, int]] = set()
        # Depth first; an entry is a move to make, where it ends, and the moves before it.
        waiting: list[tuple[Move, int, _Made]] = [
            (move, 1, None) for move in reversed(self.starts) if move.word[0] == word[0]
        ]
        while waiting:
            move, offset, before = waiting.pop()
            state = move.target
            if (state, offset) in tried:
                continue
            tried.add((state, offset))
            is_end, first, blocks, lengths, last = self._by_word.get(state) or self._index(state)
            made = (move, before)
            for following in last:
                waiting.append((following, offset, made))
            for length in lengths:
                for following in blocks.get(word[offset : offset + length], ()):
                    waiting.append((following, offset + length, made))
            for following in first:
                waiting.append((following, offset, made))
            if is_end and offset == len(word):
                return _in_order(made)
        raise ValueError("no network of the space is written so")

    def _index(self, state: int) -> _ByWord:
        """The moves from a state by what they write, those preferred last."""
        first: list[Move] = []
        last: list[Move] = []
        blocks: dict[Word, list[Move]] = {}
        for move in reversed(self.moves(state)):
            if move.word:
                blocks.setdefault(move.word, []).append(self._carried_on(move))
            else:
                (last if self._rank(state, move) else first).append(self._carried_on(move))
        lengths = sorted({len(word) for word in blocks}, reverse=True)
        self._by_word[state] = _ByWord(self.is_end(state), first, blocks, lengths, last)
        return self._by_word[state]

    def _carried_on(self, move: Move) -> Move:
        """A move together with those behind it that have no alternative and write nothing."""
        while len(self.moves(move.target)) == 1:
            (only,) = self.moves(move.target)
            if only.word:
                break
            move = Move(move.word, only.target, move.values + only.values)
        return move

    # Counting, drawing and listing

    @cached_property
    def size(self) -> int:
        """The number of words."""
        return self._start.count

    def draw(self, rng: np.random.Generator) -> Word:
        """A word, every one equally likely."""
        found: list[int] = []
        subset = self._start
        while True:
            pick = _below(rng, subset.count) - subset.is_end
            if pick < 0:
                return tuple(found)
            edge = bisect_right(subset.cumulated, pick)
            found += subset.labels[edge]
            subset = subset.targets[edge]

    def words(self) -> Iterator[Word]:
        """Every word once."""
        waiting: list[tuple[Word, _Subset]] = [((), self._start)]
        while waiting:
            word, subset = waiting.pop()
            if subset.is_end:
                yield word
            edges = list(zip(subset.labels, subset.targets, strict=True))
            waiting += [(word + label, target) for label, target in reversed(edges)]

    @cached_property
    def _start(self) -> _Subset:
        items = frozenset((move.target, move.word) for move in self.starts)
        return self._determined(items)

    def _determined(self, start: frozenset[_Item]) -> _Subset:
        """The subset for some items, with everything behind it, built without recursion."""
        waiting = [start]
        met: dict[frozenset[_Item], list[tuple[Word, frozenset[_Item]]]] = {}
        while waiting:
            items = waiting[-1]
            if items in self._subsets:
                waiting.pop()
                continue
            if items not in met:
                met[items] = self._edges(items)
                waiting += [target for _, target in met[items]]
                continue
            waiting.pop()
            edges = met.pop(items)
            ends = any(not residual and self.is_end(state) for state, residual in items)
            targets = [self._subsets[target] for _, target in edges]
            self._subsets[items] = _Subset(ends, [label for label, _ in edges], targets)
        return self._subsets[start]

    def _edges(self, items: frozenset[_Item]) -> list[tuple[Word, frozenset[_Item]]]:
        """What can follow, by first op: the longest common beginning, and where it leads."""
        by_first: dict[int, dict[_Item, None]] = {}
        for state, residual in sorted(items):
            if residual:
                by_first.setdefault(residual[0], {})[state, residual] = None
                continue
            for move in self.moves(state):
                if move.word:
                    by_first.setdefault(move.word[0], {})[move.target, move.word] = None
        found = []
        # Numbers of states and ops depend on what was asked before: the order must not.
        for _, group in sorted(by_first.items(), key=lambda each: spelled(each[0])):
            label = _common_beginning([residual for _, residual in group])
            behind = {(state, residual[len(label) :]) for state, residual in group}
            found.append((label, self._closed(behind)))
        return found

    def _closed(self, items: set[_Item]) -> frozenset[_Item]:
        """The items with all that is reached from them without writing anything."""
        reached = list(items)
        found = set(items)
        while reached:
            state, residual = reached.pop()
            if residual:
                continue
            for move in self.moves(state):
                item = (move.target, ())
                if not move.word and item not in found:
                    found.add(item)
                    reached.append(item)
        return frozenset(found)

    # Extremes

    def extreme(
        self,
        cost: Callable[[Part], int],
        better: Callable[[int, int], bool],
        joined: Callable[[int, int], int],
    ) -> Named:
        """Choices of the best network; of equals the first in the order of the options.

        Args:
            cost: of a part.
            better: whether the first of two costs is strictly the better one.
            joined: the cost of two pieces together: a sum, or the larger.
        """
        best: dict[int, tuple[int, Move | None]] = {}

        def settled(state: int) -> bool:
            chosen: tuple[int, Move | None] | None = (0, None) if self.is_end(state) else None
            for move in self.moves(state):
                if move.target not in best:
                    return False
                own = cost(move.part) if move.part is not None else 0
                value = joined(own, best[move.target][0])
                if chosen is None or better(value, chosen[0]):
                    chosen = (value, move)
            assert chosen is not None
            best[state] = chosen
            return True

        for start in self.starts:
            waiting = [start.target]
            while waiting:
                if waiting[-1] in best or settled(waiting[-1]):
                    waiting.pop()
                    continue
                waiting += [m.target for m in self.moves(waiting[-1]) if m.target not in best]
        winner = self.starts[0]
        for start in self.starts[1:]:
            if better(best[start.target][0], best[winner.target][0]):
                winner = start
        values, move = list(winner.values), best[winner.target][1]
        while move is not None:
            values += move.values
            move = best[move.target][1]
        return tuple(values)


_Item = tuple[int, Word]
"""A state, and what is still to be written before it is reached."""


_Made = tuple[Move, "_Made"] | None
"""Moves, the newest first."""


def _in_order(made: _Made) -> Named:
    moves: list[Move] = []
    while made is not None:
        move, made = made
        moves.append(move)
    return tuple([pair for move in reversed(moves) for pair in move.values])


class _ByWord(NamedTuple):
    is_end: bool
    first: list[Move]
    blocks: dict[Word, list[Move]]
    lengths: list[int]
    last: list[Move]


class _Subset:
    """A state of the deterministic automaton: edges, and how many words begin here."""

    def __init__(self, is_end: bool, labels: list[Word], targets: list[_Subset]) -> None:
        self.is_end, self.labels, self.targets = is_end, labels, targets
        self.cumulated: list[int] = []
        total = 0
        for target in targets:
            total += target.count
            self.cumulated.append(total)
        self.count: int = total + is_end


def _named(choices: Sequence[Choice], options: Values) -> Named:
    return tuple(
        [
            (choice.name, option)
            for choice, option in zip(choices, options, strict=True)
            if choice.is_real
        ]
    )


def _common_beginning(words: list[Word]) -> Word:
    shortest, *others = sorted(set(words), key=len)
    for length, op in enumerate(shortest):
        if any(other[length] != op for other in others):
            return shortest[:length]
    return shortest


def _below(rng: np.random.Generator, bound: int) -> int:
    """A whole number from 0 up to `bound`, every one equally likely, however large it is."""
    if bound < 2**63:
        return int(rng.integers(bound))
    size = (bound.bit_length() + 7) // 8
    while True:
        drawn = int.from_bytes(rng.bytes(size)) >> (8 * size - bound.bit_length())
        if drawn < bound:
            return drawn
