"""Steps from one architecture to another: mutation and crossover."""

from __future__ import annotations

from typing import Any

import numpy as np

from nas.errors import SpaceError
from nas.space.architecture import Architecture, Value
from nas.space.space import SearchSpace

MAX_MUTATION_ATTEMPTS = 1000
"""Changes that are tried before a mutation gives up: canonical forms can undo a change."""


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
