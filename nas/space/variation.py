"""Steps from one architecture to another: neighbours, mutation, crossover and distance.

One step changes one choice, or the depth of a stage; blocks that a deeper stage gains come with any
choices of their own. The distance is the smallest number of such steps, so it is a metric, and the
neighbours of an architecture are the architectures at distance one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from nas.errors import SpaceError
from nas.space.architecture import Architecture, Value
from nas.space.compiled_stage import CompiledStage
from nas.space.space import SearchSpace

MAX_MUTATION_ATTEMPTS = 1000
"""Changes that are tried before a mutation gives up: canonical forms can undo a change."""


def distance(a: Architecture, b: Architecture) -> int:
    """Return the smallest number of steps from one architecture to another of the same space.

    Example:
        >>> from nas.space import load_space
        >>> space = load_space("mobilenet", image_size=32)
        >>> distance(space.largest, space.largest)
        0
    """
    space, first, second = a.space, dict(a.choices), dict(b.choices)
    network_wide = [choice.name for choice in space.network_choices if choice.has_alternatives]
    steps = sum(first[name] != second[name] for name in network_wide)
    return steps + sum(_stage_distance(stage, first, second) for stage in space.compiled_stages)


def _stage_distance(
    stage: CompiledStage, first: Mapping[str, Any], second: Mapping[str, Any]
) -> int:
    def count_differences(names: list[str]) -> int:
        return sum(first[name] != second[name] for name in names)

    depths = stage.depth(first), stage.depth(second)
    common_depth = min(depths)
    by_block = [
        count_differences([choice.name for choice in own if choice.has_alternatives])
        for own in stage.block_choices[:common_depth]
    ]
    # Either block by block, or by way of a shallower stage: removed blocks come back as any.
    ways = [sum(by_block) + (depths[0] != depths[1])]
    ways += [sum(by_block[:depth]) + 2 for depth in stage.depths if depth < common_depth]
    shared = [choice.name for choice in stage.stage_choices if choice.has_alternatives]
    return count_differences(shared) + min(ways)


def neighbours(architecture: Architecture) -> Iterator[Architecture]:
    """Iterate over every architecture at distance one, once.

    A stage that can grow by several blocks at once has as many neighbours as these blocks have
    combinations of choices, so take only as many as needed from the iterator.

    Example:
        >>> from nas.space import load_space
        >>> space = load_space("mobilenet", image_size=32)
        >>> distance(space.largest, next(neighbours(space.largest)))
        1
    """
    space, choices = architecture.space, dict(architecture.choices)
    for name, value in architecture.choices.items():
        for option in space.parameters[name]:
            if option != value:
                yield from _canonical_completions(space, {**choices, name: option})


def _canonical_completions(space: SearchSpace, choices: dict[str, Any]) -> Iterator[Architecture]:
    """Iterate over the architectures with these choices and any options of missing choices."""
    needed = [name for each in space.compiled_stages for name, _ in each.active_parameters(choices)]
    missing = [name for name in needed if name not in choices]
    network_wide = [choice.name for choice in space.network_choices if choice.has_alternatives]
    used = {*needed, *network_wide}
    for options in product(*[space.parameters[name] for name in missing]):
        completed = {**choices, **dict(zip(missing, options, strict=True))}
        architecture = space.architecture(completed)
        # Choices that are not canonical stand for an architecture that is another step away.
        if dict(architecture.choices) == {name: completed[name] for name in used}:
            yield architecture


def mutate(
    architecture: Architecture, rng: np.random.Generator, *, changes: int = 1
) -> Architecture:
    """Return another architecture of the space with at most `changes` random choices changed.

    Raises SpaceError for a space with a single network.

    Example:
        >>> from nas.space import load_space
        >>> space = load_space("mobilenet", image_size=32)
        >>> mutate(space.largest, np.random.default_rng(0)) == space.largest
        False
    """
    space = architecture.space
    for _ in range(MAX_MUTATION_ATTEMPTS):
        choices: dict[str, Any] = dict(architecture.choices)
        changed: set[str] = set()
        for _ in range(changes):
            names = [n for n in choices if len(space.parameters[n]) > 1 and n not in changed]
            if not names:
                break
            name = names[rng.integers(len(names))]
            changed.add(name)
            others = [option for option in space.parameters[name] if option != choices[name]]
            choices[name] = others[rng.integers(len(others))]
            choices = _complete(space, choices, rng)
        mutant = space.architecture(choices)
        if mutant != architecture:
            return mutant
    raise SpaceError(f"Space {space.name} has no other network within {changes} changes.")


def crossover(a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
    """Return an architecture with every choice from either of two parents of the same space.

    Example:
        >>> from nas.space import load_space
        >>> space = load_space("mobilenet", image_size=32)
        >>> child = crossover(space.smallest, space.largest, np.random.default_rng(0))
        >>> space.smallest.macs < child.macs < space.largest.macs
        True
    """
    space, first, second = a.space, dict(a.choices), dict(b.choices)
    merged: dict[str, Any] = {}
    for name in space.parameters:
        inherited = [parent[name] for parent in (first, second) if name in parent]
        if inherited:
            merged[name] = inherited[rng.integers(len(inherited))]
    return space.architecture(merged)


def _complete(
    space: SearchSpace, choices: dict[str, Any], rng: np.random.Generator
) -> dict[str, Value]:
    """Return the used choices, with a random option for those that a deeper stage adds."""
    network_wide = [choice.name for choice in space.network_choices if choice.has_alternatives]
    completed = {name: choices[name] for name in network_wide}
    for stage in space.compiled_stages:
        for name, options in stage.active_parameters(choices):
            if name in choices:
                completed[name] = choices[name]
            else:
                completed[name] = options[rng.integers(len(options))]
    return completed
