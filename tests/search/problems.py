"""Synthetic objectives that tests of several samplers search for."""

import numpy as np

from nas.search import Objective
from tests.search.test_study import SPACES


def make_objective(name, function, **settings):
    """Return an objective with the value of a function for each architecture."""
    return Objective(name, lambda batch: [function(each) for each in batch], **settings)


def additive_function(space, seed=0):
    """Return a function of a space's architectures that adds up a value for every choice."""
    rng = np.random.default_rng(seed)
    effects = {key: rng.standard_normal(len(o)) for key, o in space.parameters.items()}

    def value(architecture):
        return 10 + sum(
            effects[key][space.parameters[key].index(chosen)]
            for key, chosen in architecture.choices.items()
        )

    return value


_ADDITIVE_FUNCTIONS = {space.name: additive_function(space) for space in SPACES}


def additive(architecture):
    """Return a value that a model can learn from the choices, and that sizes say nothing about."""
    return _ADDITIVE_FUNCTIONS[architecture.space.name](architecture)
