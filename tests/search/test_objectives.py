import math

import pytest

from nas.errors import RequestError
from nas.search import Infeasible, Objective
from nas.search.objectives import prepare_objectives
from tests.search.test_study import SPACES

ARCHITECTURES = [space.smallest for space in SPACES]


def constant(name, values, **settings):
    """Return an objective with given values of the three architectures."""
    return Objective(name, lambda batch: values, **settings)


@pytest.mark.parametrize(
    ("direction", "feasible", "infeasible"), [("minimize", 1.0, 3.0), ("maximize", 3.0, 1.0)]
)
def test_value_beyond_the_limit_is_infeasible_and_kept(direction, feasible, infeasible):
    objective = constant("us", [feasible, 2.0, infeasible], direction=direction, limit=2.0)
    *within, beyond = objective.evaluate(ARCHITECTURES)
    assert within == [feasible, 2.0]
    assert beyond == Infeasible(f"us {infeasible:g} is beyond the limit 2", infeasible)


def test_values_that_are_not_finite_are_infeasible_without_a_value():
    scores = constant("us", [math.nan, math.inf, -math.inf]).evaluate(ARCHITECTURES)
    assert scores == [Infeasible("us is nan"), Infeasible("us is inf"), Infeasible("us is -inf")]


def test_functions_become_expensive_objectives_that_are_minimised():
    objectives = prepare_objectives(
        {"length": lambda each: len(each.space.name), "one": lambda each: 1}
    )
    assert [objective.name for objective in objectives] == ["length", "one"]
    assert [objective.sign for objective in objectives] == [1, 1]
    assert not any(objective.cheap for objective in objectives)
    lengths = [float(len(space.name)) for space in SPACES]
    assert objectives[0].evaluate(ARCHITECTURES) == lengths
    assert objectives[1].evaluate(ARCHITECTURES) == [1, 1, 1]


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ([], "different names"),
        ([constant("a", []), constant("a", [])], "different names"),
        ([constant("a", [], limit=1.0, limit_only=True)], r"\(a\) are limits only"),
        ([constant("a", []), constant("b", [], limit_only=True)], "b is a limit only and has no"),
    ],
)
def test_unusable_objectives_are_refused(objectives, message):
    with pytest.raises(RequestError, match=message):
        prepare_objectives(objectives)
