"""`NetworkAutomaton`: the networks of a space as the language of a finite automaton.

A network is a sequence of ops, so a space is a finite set of op sequences, and its table is a
nondeterministic finite automaton that accepts them. A state is a position in the table together
with the shape of the tensor that arrives there; a transition is a block, labelled with its ops.

Different choices can make one op sequence: rounding makes two ratios equal, a left-out block may
stand before or after another one, and neighbouring stages may distribute the same blocks in several
ways. The automaton therefore can have several paths for one network, of which one is canonical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import product
from operator import add, itemgetter
from typing import Literal, NamedTuple

from nas.graph import Channels, Shape
from nas.space.architecture import Choices
from nas.space.block_graph import BlockGraph, OpSequence, input_op_id
from nas.space.choice import Choice
from nas.space.compiled_stage import ChosenOptions
from nas.space.lowering import Lowering

End = Literal["smallest", "largest"]
"""An end of the range of a count over the networks of a space."""


class Transition(NamedTuple):
    """An edge of the automaton.

    Attributes:
        ops: the label; empty where nothing is added to the network.
        target: number of the state that the edge leads to.
        choices: what taking the edge decides.
        block: the block that adds the ops, if any.
    """

    ops: OpSequence
    target: int
    choices: Choices
    block: BlockGraph | None = None


class _State(NamedTuple):
    """A position in the table, with everything that decides what can follow.

    Attributes:
        stage: index of the stage; one more than the last in the final state.
        position: of the next block in the stage.
        network_options: of the network-wide choices, None for those that no longer matter.
        stage_options: of the stage's own choices, empty before its first block.
        shape: of the tensor that arrives.
    """

    stage: int
    position: int
    network_options: ChosenOptions
    stage_options: ChosenOptions
    shape: Shape


class NetworkAutomaton:
    """The automaton of a space: its states and transitions, and what follows from all of them.

    States have numbers. States and transitions are worked out on the first visit, which raises
    SpaceError for blocks that cannot be built.
    """

    def __init__(self, lowering: Lowering) -> None:
        self._lowering = lowering
        self._stages = lowering.stages
        self._states: list[_State] = []
        self._state_numbers: dict[_State, int] = {}
        self._transitions: dict[int, list[Transition]] = {}
        self._indexes: dict[int, _TransitionIndex] = {}
        # Network-wide choices that a later stage depends on; a state forgets the others. Which
        # strides a small image drops depends on all strides, so a choice that decides the stride of
        # one stage matters to every stage.
        stride_choices = [stage.stride_choice for stage in self._stages]
        self._remembered = [
            [
                position
                for position, choice in enumerate(lowering.network_choices)
                if any(choice in stage.network_choices for stage in self._stages[index:])
                or (choice in stride_choices and index < len(self._stages))
            ]
            for index in range(len(self._stages) + 1)
        ]

    # States and transitions

    @cached_property
    def initial_transitions(self) -> list[Transition]:
        """The transitions that add the input op, one for each network-wide combination."""
        choices = self._lowering.network_choices
        transitions = []
        for options in product(*[choice.options for choice in choices]):
            op = self._lowering.input_op_at(options)
            target = self._enter(0, options, op.shape)
            transitions.append(
                Transition((input_op_id(op),), target, _real_choices(choices, options))
            )
        return transitions

    def transitions(self, state: int) -> list[Transition]:
        """Return the transitions from a state in the order of preference of canonical forms.

        Leaving the stage comes first, then adding a block, then leaving a block out. Of transitions
        with one label and one target only the first is kept.
        """
        if state not in self._transitions:
            distinct: dict[tuple[OpSequence, int], Transition] = {}
            for transition in self._make_transitions(self._states[state]):
                distinct.setdefault((transition.ops, transition.target), transition)
            self._transitions[state] = sorted(
                distinct.values(), key=lambda each: self._preference(state, each)
            )
        return self._transitions[state]

    def _preference(self, state: int, transition: Transition) -> int:
        if transition.ops:
            return 1
        return 0 if self._states[transition.target].stage > self._states[state].stage else 2

    def is_final(self, state: int) -> bool:
        """Return whether a network may end in a state."""
        return self._states[state].stage == len(self._stages)

    def _make_transitions(self, state: _State) -> Iterator[Transition]:
        if state.stage == len(self._stages):
            return
        stage = self._stages[state.stage]
        if state.position == 0:
            for options in product(*[choice.options for choice in stage.stage_choices]):
                chosen = _real_choices(stage.stage_choices, options)
                yield from self._block_transitions(state._replace(stage_options=options), chosen)
            return
        if state.position in stage.depths:
            depth = ((stage.depth_name, state.position),) if len(stage.depths) > 1 else ()
            after = self._enter(state.stage + 1, self._network_options(state), state.shape)
            yield Transition((), after, depth)
        if state.position < max(stage.depths):
            yield from self._block_transitions(state, ())

    def _block_transitions(self, state: _State, stage_choices: Choices) -> Iterator[Transition]:
        stage, position = self._stages[state.stage], state.position
        network_options = self._network_options(state)
        stride = self._lowering.strides_for(network_options)[state.stage] if position == 0 else 1
        x = state.shape, Channels.prefix(state.shape[0], state.shape[0])
        shared = (*stage.relevant_options(network_options), *state.stage_options)
        for own in product(*[choice.options for choice in stage.block_choices[position]]):
            block = stage.block_graph(x, position, (*shared, *own), stride)
            shape = state.shape if block is None else block.shape
            target = self._number(state._replace(position=position + 1, shape=shape))
            chosen = stage_choices + _real_choices(stage.block_choices[position], own)
            yield Transition(() if block is None else block.op_sequence, target, chosen, block)

    def _enter(self, stage: int, network_options: ChosenOptions, shape: Shape) -> int:
        """Return the number of the state before the first block of a stage."""
        remembered = self._remembered[stage]
        options = tuple(
            [
                option if position in remembered else None
                for position, option in enumerate(network_options)
            ]
        )
        return self._number(_State(stage, 0, options, (), shape))

    def _network_options(self, state: _State) -> ChosenOptions:
        """Return all network-wide options, the first one for choices that no longer matter."""
        return tuple(
            [
                choice.options[0] if option is None else option
                for choice, option in zip(
                    self._lowering.network_choices, state.network_options, strict=True
                )
            ]
        )

    def _number(self, state: _State) -> int:
        number = self._state_numbers.setdefault(state, len(self._states))
        if number == len(self._states):
            self._states.append(state)
        return number

    def all_transitions(self) -> Iterator[Transition]:
        """Iterate over every transition behind the initial ones, each once."""
        waiting = list(dict.fromkeys(each.target for each in self.initial_transitions))
        reached = set(waiting)
        while waiting:
            for transition in self.transitions(waiting.pop()):
                yield transition
                if transition.target not in reached:
                    reached.add(transition.target)
                    waiting.append(transition.target)

    def output_shapes(self) -> list[set[Shape]]:
        """Return the shapes of the tensors that can leave each stage."""
        self._enter_all()
        shapes: list[set[Shape]] = [set() for _ in self._stages]
        for state in self._states:
            if state.position == 0 and state.stage > 0:
                shapes[state.stage - 1].add(state.shape)
        return shapes

    # Canonical choices

    def canonical_choices(self, ops: OpSequence) -> Choices:
        """Return the choices that make an op sequence, the preferred ones of several.

        Two paths are compared at the first transition in which they differ, and the path with the
        preferred transition wins; see `transitions`. The choices are in the order of the path, not
        of the table.

        Raises ValueError for an op sequence that is no network of the space.
        """
        visited: set[tuple[int, int]] = set()
        # Depth first. An entry is a transition to take, the offset behind its label, and the
        # transitions before it.
        waiting: list[tuple[Transition, int, tuple[Transition, ...]]] = [
            (each, 1, ()) for each in reversed(self.initial_transitions) if each.ops[0] == ops[0]
        ]
        while waiting:
            transition, offset, before = waiting.pop()
            state = transition.target
            if (state, offset) in visited:
                continue
            visited.add((state, offset))
            is_final, leaving, by_ops, lengths, skipping = self._indexes.get(state) or self._index(
                state
            )
            path = (*before, transition)
            for following in skipping:
                waiting.append((following, offset, path))
            for length in lengths:
                for following in by_ops.get(ops[offset : offset + length], ()):
                    waiting.append((following, offset + length, path))
            for following in leaving:
                waiting.append((following, offset, path))
            if is_final and offset == len(ops):
                return tuple([pair for each in path for pair in each.choices])
        raise ValueError("no network of the space has these ops")

    def _index(self, state: int) -> _TransitionIndex:
        leaving: list[Transition] = []
        skipping: list[Transition] = []
        by_ops: dict[OpSequence, list[Transition]] = {}
        # The search takes from the end of its list, so the preferred transitions come last.
        for transition in reversed(self.transitions(state)):
            extended = self._extended(transition)
            if transition.ops:
                by_ops.setdefault(transition.ops, []).append(extended)
            else:
                (skipping if self._preference(state, transition) else leaving).append(extended)
        lengths = sorted({len(ops) for ops in by_ops}, reverse=True)
        self._indexes[state] = _TransitionIndex(
            self.is_final(state), leaving, by_ops, lengths, skipping
        )
        return self._indexes[state]

    def _extended(self, transition: Transition) -> Transition:
        """Return a transition merged with those behind it that are unlabelled and the only way."""
        while len(self.transitions(transition.target)) == 1:
            (only,) = self.transitions(transition.target)
            if only.ops:
                break
            transition = Transition(transition.ops, only.target, transition.choices + only.choices)
        return transition

    # Extremes

    def extreme(self, count: str, end: End) -> Choices:
        """Return the choices of the network with the smallest or largest count.

        If several are equal, it is the first in the order of the options.

        Args:
            count: name of the count, see `nas.figures.COUNTS`.
            end: which end of its range.
        """
        choose = max if end == "largest" else min
        # The peak of a network is the largest of its blocks'; other counts add up.
        combine: Callable[[int, int], int] = max if count == "peak_memory_bytes" else add
        best: dict[int, _Way] = {}

        def best_of(transitions: Sequence[Transition]) -> _Way:
            ways = []
            for transition in transitions:
                total, choices = best[transition.target]
                own = 0 if transition.block is None else getattr(transition.block, count)
                ways.append((combine(own, total), transition.choices + choices))
            return choose(ways, key=itemgetter(0))

        self._enter_all()
        # A transition leads to a later place in the table, so that the last states come first.
        for number in sorted(range(len(self._states)), key=self._place, reverse=True):
            is_final = self.is_final(number)
            best[number] = (0, ()) if is_final else best_of(self.transitions(number))
        return best_of(self.initial_transitions)[1]

    def _enter_all(self) -> None:
        for _ in self.all_transitions():
            pass

    def _place(self, number: int) -> tuple[int, int]:
        return self._states[number].stage, self._states[number].position


_Way = tuple[int, Choices]
"""The cost of the blocks from a state to the end of a network, and the choices that make them."""


class _TransitionIndex(NamedTuple):
    """The transitions from a state by their labels, in each list the preferred ones last.

    Attributes:
        is_final: whether a network may end in the state.
        leaving: unlabelled transitions that leave the stage.
        by_ops: labelled transitions by their labels.
        lengths: of the labels, the longest first.
        skipping: unlabelled transitions that leave a block out.
    """

    is_final: bool
    leaving: list[Transition]
    by_ops: dict[OpSequence, list[Transition]]
    lengths: list[int]
    skipping: list[Transition]


def _real_choices(choices: Sequence[Choice], options: ChosenOptions) -> Choices:
    """Return names and options without the choices that have a single option."""
    return tuple(
        [
            (choice.name, option)
            for choice, option in zip(choices, options, strict=True)
            if choice.has_alternatives
        ]
    )
