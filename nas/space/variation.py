"""Steps from one architecture to another: neighbours, mutation, crossover, and how far apart.

One step changes one choice, or the depth of a stage; blocks that a deeper stage gains come with any
choices of their own. The distance is the smallest number of such steps, so it is a metric, and the
neighbours of an architecture are those at distance one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import numpy as np

from nas.errors import SpaceError
from nas.space.architecture import Architecture, Value
from nas.space.space import SearchSpace
from nas.space.stage import Row

_ATTEMPTS = 1000
"""Changes that are tried before a mutation gives up: canonical forms can undo a change."""


def distance(a: Architecture, b: Architecture) -> int:
    """The smallest number of steps from one architecture to another of the same space."""
    space = a.space
    first, second = dict(a.choices), dict(b.choices)
    steps = sum(first[c.name] != second[c.name] for c in space.network if c.is_real)
    return steps + sum(_stage_distance(row, first, second) for row in space.rows)


def _stage_distance(row: Row, first: Mapping[str, Any], second: Mapping[str, Any]) -> int:
    shared = sum(first[c.name] != second[c.name] for c in row.shared if c.is_real)
    depths = row.depth(first), row.depth(second)
    both = min(depths)
    by_block = [
        sum(first[c.name] != second[c.name] for c in own if c.is_real) for own in row.own[:both]
    ]
    # Either block by block, or by way of a shallower stage: blocks taken away come back as any.
    ways = [sum(by_block) + (depths[0] != depths[1])]
    ways += [sum(by_block[:depth]) + 2 for depth in row.depths if depth < both]
    return shared + min(ways)


def neighbours(architecture: Architecture) -> Iterator[Architecture]:
    """Every architecture at distance one, once.

    A stage that can grow by several blocks at once has as many neighbours as these blocks have
    choices; take what is needed from the iterator.
    """
    space, choices = architecture.space, dict(architecture.choices)
    for key, value in architecture.choices:
        for option in space.parameters[key]:
            if option != value:
                yield from _canonical(space, {**choices, key: option})


def _canonical(space: SearchSpace, choices: dict[str, Any]) -> Iterator[Architecture]:
    """The architectures that are written with these choices, and any where one is missing."""
    needed = [name for row in space.rows for name, _ in row.used(choices)]
    missing = [name for name in needed if name not in choices]
    used = {*needed, *(choice.name for choice in space.network if choice.is_real)}
    for options in product(*[space.parameters[name] for name in missing]):
        written = {**choices, **dict(zip(missing, options, strict=True))}
        found = space.architecture(written)
        # Another way to write a network is another step away: its canonical form is not this one.
        if dict(found.choices) == {name: written[name] for name in used}:
            yield found


def mutate(
    architecture: Architecture, rng: np.random.Generator, *, changes: int = 1
) -> Architecture:
    """Another architecture of the space, `changes` different random choices away at most.

    Raises SpaceError for a space of a single network.
    """
    space = architecture.space
    for _ in range(_ATTEMPTS):
        choices: dict[str, Any] = dict(architecture.choices)
        changed: set[str] = set()
        for _ in range(changes):
            keys = [k for k in choices if len(space.parameters[k]) > 1 and k not in changed]
            if not keys:
                break
            key = keys[rng.integers(len(keys))]
            changed.add(key)
            others = [option for option in space.parameters[key] if option != choices[key]]
            choices[key] = others[rng.integers(len(others))]
            choices = _completed(space, choices, rng)
        found = space.architecture(choices)
        if found != architecture:
            return found
    raise SpaceError(f"Space {space.name} has no other network within {changes} changes.")


def crossover(a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture:
    """A child of two architectures: every choice from either of the parents that have it."""
    space, first, second = a.space, dict(a.choices), dict(b.choices)
    merged: dict[str, Any] = {}
    for key in space.parameters:
        parents = [parent[key] for parent in (first, second) if key in parent]
        if parents:
            merged[key] = parents[rng.integers(len(parents))]
    return space.architecture(merged)


def _completed(
    space: SearchSpace, choices: dict[str, Any], rng: np.random.Generator
) -> dict[str, Value]:
    """The choices that matter, those that a deeper stage newly needs drawn uniformly."""
    found = {c.name: choices[c.name] for c in space.network if c.is_real}
    for row in space.rows:
        for name, options in row.used(choices):
            if name in choices:
                found[name] = choices[name]
            else:
                found[name] = options[rng.integers(len(options))]
    return found
