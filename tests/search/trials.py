"""Trials, objectives and storage backends that the tests of the search share."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from nas.search.objectives import Objective
from nas.search.trial import Trial
from nas.space import load_space

SPACE = load_space("squeezenet_tiny", image_size=8, channels=1)

OBJECTIVES = [
    Objective("macs", lambda batch: [float(each.macs) for each in batch]),
    Objective("params", lambda batch: [0.0 for _ in batch], limit=1e9, limit_only=True),
    Objective("score", lambda batch: [0.5 for _ in batch], direction="maximize"),
]

SETTINGS = {"sampler": "x"}
"""Further settings of the search to which the trials belong."""

DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)]
BACKENDS = ["journal", *DATABASES]
FORMS = BACKENDS[:2]
"""A journal and a database, for tests in which no two processes write at the same time."""


def for_backends(backends):
    """Run a test with each of several kinds of storage, see the fixtures in conftest.py."""
    return pytest.mark.parametrize("backend", backends, indirect=True)


def proposed_trials(count, seed=0):
    """Return trials of distinct architectures before their evaluation."""
    rng = np.random.default_rng(seed)
    trials = {}
    while len(trials) < count:
        architecture = SPACE.sample(rng, uniform_over="choices")
        digest = architecture.digest
        parameters = {f"{SPACE.name}.{key}": value for key, value in architecture.choices.items()}
        system_attrs = {"drawn": [1, 2]}
        trials[digest] = Trial(
            digest, architecture, parameters, "failed", {}, 0.0, "", system_attrs
        )
    return list(trials.values())


def completed(trial, score=0.5):
    """Return a trial with values of all objectives."""
    values = {"macs": float(trial.architecture.macs), "params": 7.0, "score": score}
    recorded = {"images": 250.0}
    known = {"values": values, "recorded": recorded, "variances": {"score": 0.01}}
    return replace(trial, state="complete", seconds=1.25, **known)


def trials_of_every_state(seed=0):
    """Return a completed, an infeasible, a failed and another completed trial."""
    first, second, third, fourth = proposed_trials(4, seed)
    return [
        completed(first),
        replace(second, state="infeasible", error="too big", values={"macs": 5.0}, seconds=0.5),
        replace(third, error="ValueError: no luck"),
        completed(fourth, score=-1e300),
    ]


def in_threads(action, count):
    """Call a function in several threads at once, and return what they return."""
    with ThreadPoolExecutor(count) as threads:
        return [done.result() for done in [threads.submit(action) for _ in range(count)]]


def digests(trials):
    return [trial.digest for trial in trials]


def optuna_states(storage, log):
    """Return the names of Optuna's states of all trials of a log's study, by digest."""
    states = {}
    for each in storage.get_trials(log._study_id):
        states.setdefault(each.user_attrs["digest"], []).append(each.state.name)
    return states
