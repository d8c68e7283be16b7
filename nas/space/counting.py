"""`DeterministicAutomaton`: the networks of a space, counted, sampled and listed exactly.

Different choices can make one network, so counting choices counts some networks more than once. The
subset construction (Rabin and Scott 1959) turns the automaton of the space into a deterministic one
in which every network has exactly one path; counting paths then counts networks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from graphlib import TopologicalSorter

import numpy as np

from nas.space.automaton import NetworkAutomaton
from nas.space.block_graph import OpSequence, op_description

_Item = tuple[int, OpSequence]
"""A state, and the ops that are still to follow before it is reached."""


class DeterministicAutomaton:
    """The deterministic automaton that accepts the same op sequences as a space's automaton.

    All states are built on the first use, which raises SpaceError for blocks that cannot be built.
    """

    def __init__(self, automaton: NetworkAutomaton) -> None:
        self._automaton = automaton

    @cached_property
    def size(self) -> int:
        """The number of networks."""
        return self._initial_state.count

    def sample(self, rng: np.random.Generator) -> OpSequence:
        """Return the op sequence of a network, every one equally likely."""
        ops: list[int] = []
        state = self._initial_state
        while True:
            index = _random_below(rng, state.count) - state.is_final
            if index < 0:
                return tuple(ops)
            edge = bisect_right(state.cumulative_counts, index)
            ops += state.labels[edge]
            state = state.targets[edge]

    def op_sequences(self) -> Iterator[OpSequence]:
        """Iterate over the op sequence of every network, each once."""
        waiting: list[tuple[OpSequence, _State]] = [((), self._initial_state)]
        while waiting:
            ops, state = waiting.pop()
            if state.is_final:
                yield ops
            edges = list(zip(state.labels, state.targets, strict=True))
            waiting += [(ops + label, target) for label, target in reversed(edges)]

    @cached_property
    def _initial_state(self) -> _State:
        """The deterministic state that networks begin in, with all states behind it."""
        start = frozenset((each.target, each.ops) for each in self._automaton.initial_transitions)
        edges: dict[frozenset[_Item], list[tuple[OpSequence, frozenset[_Item]]]] = {}
        waiting = [start]
        while waiting:
            items = waiting.pop()
            if items not in edges:
                edges[items] = self._deterministic_edges(items)
                waiting += [target for _, target in edges[items]]
        targets = {items: [target for _, target in own] for items, own in edges.items()}
        states: dict[frozenset[_Item], _State] = {}
        for items in TopologicalSorter(targets).static_order():
            is_final = any(not rest and self._automaton.is_final(state) for state, rest in items)
            labels = [label for label, _ in edges[items]]
            states[items] = _State(is_final, labels, [states[each] for each in targets[items]])
        return states[start]

    def _deterministic_edges(
        self, items: frozenset[_Item]
    ) -> list[tuple[OpSequence, frozenset[_Item]]]:
        """Return an edge for each op that can follow: the longest common label and its target."""
        by_first_op: dict[int, dict[_Item, None]] = {}
        for state, rest in sorted(items):
            if rest:
                by_first_op.setdefault(rest[0], {})[state, rest] = None
                continue
            for transition in self._automaton.transitions(state):
                if transition.ops:
                    group = by_first_op.setdefault(transition.ops[0], {})
                    group[transition.target, transition.ops] = None
        edges = []
        # The numbers of states and ops depend on what was asked before; the order must not.
        for _, group in sorted(by_first_op.items(), key=lambda each: op_description(each[0])):
            label = _common_prefix([rest for _, rest in group])
            after = {(state, rest[len(label) :]) for state, rest in group}
            edges.append((label, self._closure(after)))
        return edges

    def _closure(self, items: set[_Item]) -> frozenset[_Item]:
        """Return the items with all that unlabelled transitions lead to."""
        waiting = list(items)
        reached = set(items)
        while waiting:
            state, rest = waiting.pop()
            if rest:
                continue
            for transition in self._automaton.transitions(state):
                item = (transition.target, ())
                if not transition.ops and item not in reached:
                    reached.add(item)
                    waiting.append(item)
        return frozenset(reached)


class _State:
    """A state of the deterministic automaton, with the number of networks that pass it."""

    def __init__(self, is_final: bool, labels: list[OpSequence], targets: list[_State]) -> None:
        self.is_final, self.labels, self.targets = is_final, labels, targets
        self.cumulative_counts: list[int] = []
        total = 0
        for target in targets:
            total += target.count
            self.cumulative_counts.append(total)
        self.count: int = total + is_final


def _common_prefix(sequences: list[OpSequence]) -> OpSequence:
    shortest, *others = sorted(set(sequences), key=len)
    for length, op in enumerate(shortest):
        if any(other[length] != op for other in others):
            return shortest[:length]
    return shortest


def _random_below(rng: np.random.Generator, bound: int) -> int:
    """Return an integer from 0 up to `bound`, every one equally likely, however large it is."""
    if bound < 2**63:
        return int(rng.integers(bound))
    size = (bound.bit_length() + 7) // 8
    while True:
        drawn = int.from_bytes(rng.bytes(size)) >> (8 * size - bound.bit_length())
        if drawn < bound:
            return drawn
