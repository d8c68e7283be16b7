"""Wrong arguments of public functions raise a `NasError` where they are given."""

import inspect
import math
import re
from pathlib import Path
from typing import Annotated, Literal
from unittest.mock import create_autospec

import numpy as np
import optuna
import pytest

import nas
from nas.arguments import AtLeast, checked, describe, require
from nas.errors import NasError, RequestError, SpaceError
from nas.latency.runtime import KernelTimer
from nas.run.settings import JobSettings
from nas.space import Limit, load_definition, sample_within
from nas.space.library import find_reference

SPACE = nas.load_space("squeezenet_tiny", image_size=8, channels=1)
ARCHITECTURE = SPACE.smallest


def stand_in(kind):
    """Return an object that passes for an instance of a class, and fails when it is used."""
    return create_autospec(kind, instance=True)


TABLE, RUNTIME, RUN = map(stand_in, (nas.LatencyTable, nas.Runtime, nas.Run))

CALLS = {
    nas.benchmark: {"path": "model"},
    nas.build_table: {"table": TABLE, "kernels": [], "timer": stand_in(KernelTimer)},
    nas.check_table: {
        "table": TABLE,
        "spaces": [SPACE],
        "runtime": RUNTIME,
        "nets": 1,
        "rng": np.random.default_rng(0),
    },
    nas.evaluate: {
        "supernet": stand_in(nas.Supernet),
        "architectures": [ARCHITECTURE],
        "data": stand_in(nas.ImageDataset),
    },
    nas.load_dataset: {"source": "digits"},
    nas.load_job: {"path": Path("job.toml")},
    nas.load_model: {"path": "model"},
    nas.load_space: {"name_or_path": "mobilenet_tiny"},
    nas.measure_sustained: {"path": "model", "minutes": 1},
    nas.open_run: {"path": "run"},
    nas.open_runtime: {"name": "tvm"},
    nas.read_weights: {"path": "weights.pth"},
    nas.retarget: {"run": RUN},
    nas.run_job: {"settings": JobSettings.model_construct(), "folder": Path("run")},
    nas.run_search: {"spaces": SPACE, "objectives": {"macs": lambda each: each.macs}, "trials": 3},
    nas.space_kernels: {"space": SPACE, "runtime": RUNTIME},
    nas.suggest: {"trial": optuna.trial.FixedTrial({}), "spaces": SPACE},
    nas.to_torch: {"network": ARCHITECTURE},
    nas.train: {
        "space": SPACE,
        "data": stand_in(nas.ImageDataset),
        "folder": "supernet",
        "seed": 0,
    },
    nas.verify: {"path": "model"},
    nas.GuidedSampler: {"spaces": SPACE},
    nas.Objective: {"name": "macs", "score": lambda batch: [each.macs for each in batch]},
    nas.TrainingSettings: {},
    nas.LatencyTable.open: {"path": "table.jsonl"},
    nas.LatencyTable.open_or_create: {"path": "tables", "runtime": RUNTIME},
    nas.LatencyTable.predict: {"self": TABLE, "network": ARCHITECTURE},
    nas.Run.architecture: {"self": RUN, "digest": "a"},
    nas.Run.space: {"self": RUN, "name": "a"},
    nas.SearchSpace.adapt: {"self": SPACE},
    nas.SearchSpace.architecture: {"self": SPACE, "choices": {}},
    nas.SearchSpace.extreme: {"self": SPACE, "count": "macs", "end": "largest"},
    nas.SearchSpace.from_json: {"self": SPACE, "record": ARCHITECTURE.to_json()},
    nas.SearchSpace.published: {"self": SPACE, "name": "a"},
    nas.SearchSpace.reference: {"self": SPACE, "name": "a"},
    nas.SearchSpace.sample: {"self": SPACE},
    load_definition: {"name_or_path": "mobilenet_tiny"},
    find_reference: {"name": "a"},
    sample_within: {
        "space": SPACE,
        "rng": np.random.default_rng(0),
        "limits": [Limit("macs", largest=1e9)],
    },
}
"""Public functions with valid arguments."""

CASES = [
    pytest.param(call, name, id=f"{call.__qualname__}-{name}")
    for call in CALLS
    for name in inspect.signature(call).parameters
    if name != "self"
]


def test_table_has_every_public_function():
    functions = {getattr(nas, name) for name in nas.__all__}
    missing = {each for each in functions if inspect.isfunction(each)} - CALLS.keys()
    assert missing == {nas.space_names}, "which has no arguments"


@pytest.mark.parametrize(("call", "name"), CASES)
def test_every_argument_of_a_wrong_type_is_refused(call, name):
    for wrong in (object(), [object()], {1: object()}, math.nan):
        with pytest.raises(NasError) as caught:
            call(**{**CALLS[call], name: wrong})
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


WRONG_VALUES = [
    (nas.run_search, {"trials": "20"}, "trials is '20'. Give a whole number or None."),
    (nas.run_search, {"trials": -1}, "must be positive"),
    (
        nas.run_search,
        {"spaces": "mobilenet"},
        "spaces is 'mobilenet'. Give a SearchSpace or a",
    ),
    (nas.run_search, {"seed": -1}, "seed is -1. Give a whole number of at least 0."),
    (nas.run_search, {"sampler": "TPE"}, "no sampler 'TPE'"),
    (nas.run_search, {"trial": 3}, "unexpected keyword argument 'trial'"),
    (nas.Objective, {"direction": "minimise"}, "direction is 'minimise'. Give 'minimize' or 'max"),
    (nas.Objective, {"direction": None}, "direction is None. Give 'minimize' or 'maximize'."),
    (nas.Objective, {"limit": math.nan}, "limit is nan. Give a finite number or None."),
    (nas.TrainingSettings, {"epochs": "3"}, "epochs is '3'. Give a finite number."),
    (nas.TrainingSettings, {"epochs": 0}, "epochs cannot be 0"),
    (nas.load_space, {"classes": 0}, "classes is 0"),
    (nas.load_space, {"name_or_path": "mobilenet_tny"}, "no space 'mobilenet_tny'"),
    (nas.to_torch, {"network": SPACE}, "Give an Architecture or a Graph."),
    (nas.SearchSpace.sample, {"seed": -1}, "seed is -1"),
    (nas.SearchSpace.sample, {"uniform_over": "networkz"}, "Give 'networks' or 'choices'."),
]


@pytest.mark.parametrize(
    ("call", "wrong", "message"),
    WRONG_VALUES,
    ids=[f"{call.__qualname__} {wrong}" for call, wrong, _ in WRONG_VALUES],
)
def test_wrong_values_are_refused(call, wrong, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        call(**{**CALLS[call], **wrong})


def test_missing_argument_is_named():
    with pytest.raises(RequestError, match="run_search: missing a required argument: 'spaces'"):
        nas.run_search()
    with pytest.raises(SpaceError, match="missing a required argument: 'name_or_path'"):
        nas.load_space()


VALUES = [
    (int, [1, np.int64(3), -2], [True, 1.0, "1", None]),
    (float, [1, 1.5, np.float32(2), np.int64(3)], [True, math.nan, math.inf, "1", None]),
    (bool, [True, np.bool_(False)], [1, "True", None]),
    (str, ["", "a"], [b"a", 1, None]),
    (str | Path, ["a", Path("a")], [b"a", 3]),
    (int | None, [1, None], [1.5]),
    (Annotated[int, AtLeast(1)], [1, 2], [0, -1, 1.0]),
    (Literal["a", 1], ["a", 1], ["b", True, 1.0, None, []]),
    (list[int], [[1], (1, 2), []], [1, "12", [1, "2"], {1: 2}]),
    (dict[str, float], [{}, {"a": 1}], [[("a", 1)], {1: 1}, {"a": "1"}]),
    (type(ARCHITECTURE), [ARCHITECTURE], [SPACE, None]),
]


@pytest.mark.parametrize(("annotation", "right", "wrong"), VALUES, ids=lambda each: str(each)[:40])
def test_values_belong_to_annotations(annotation, right, wrong):
    for value in right:
        require(value, annotation, "it")
    for value in wrong:
        with pytest.raises(RequestError, match=re.escape(describe(annotation))):
            require(value, annotation, "it")


def test_arguments_are_passed_on_as_they_are():
    given = iter([1, 2])

    @checked
    def function(first: object, *rest: int, key: "dict[str, int] | None" = None, **others: str):
        return first, rest, key, others

    mapping = {"a": 1}
    first, rest, key, others = function(given, 1, 2, key=mapping, other="x")
    assert first is given
    assert key is mapping
    assert (rest, others) == ((1, 2), {"other": "x"})
    with pytest.raises(RequestError, match="function: rest is '2'"):
        function(given, 1, "2")
    with pytest.raises(RequestError, match="function: other is 3"):
        function(given, other=3)
