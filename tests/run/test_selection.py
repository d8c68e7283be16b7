"""The choice of a member of a front under limits."""

from dataclasses import fields

import pytest

from nas.errors import InfeasibleError, RequestError
from nas.run.candidates import Candidate
from nas.run.selection import Limits, expected_accuracies, member_options
from nas.run.selection import select as select_of
from tests.run.test_judged import IMAGES

SLOW, FAST, GUESS = "s1ab", "wa57", "ge55"


def member(digest, accuracy, measured, predicted=1.0, params=100, **changes) -> Candidate:
    return Candidate.model_validate(
        {
            "id": digest,
            "space": "toy",
            "digest": digest,
            "state": "complete",
            "architecture": {"space": "toy", "choices": {"stem.width": 8}},
            "validation_accuracy": accuracy,
            "measured_us": measured,
            "predicted_us": predicted,
            "macs": 1000,
            "params": params,
            "peak_memory_bytes": 4000,
            "seconds": 0.1,
            **changes,
        }
    )


def select(members, limits) -> Candidate:
    return select_of(member_options(members), limits, IMAGES).member


FRONT = [
    member(SLOW, 0.9, 900.0, 100.0, params=900),
    member(FAST, 0.7, 300.0, 100.0, params=300),
    member(GUESS, 0.8, None, 500.0, params=500),
]


def test_select_returns_most_accurate_member_within_limits():
    assert select(FRONT, Limits()).id == SLOW
    assert select(FRONT, Limits(max_params=600)).id == GUESS
    assert select(FRONT, Limits(max_latency_ms=0.4, min_accuracy=0.6)).id == FAST


def test_select_prefers_measured_to_predicted_latency():
    """All three are predicted within 0.5 ms, but the slow one was measured at 0.9 ms."""
    assert select(FRONT, Limits(max_latency_ms=0.5)).id == GUESS


def test_trained_members_count_with_their_trained_accuracy():
    """Training gained 0.1 and 0.2, so 0.15 is expected of the member that was not trained."""
    members = [
        member(FAST, 0.7, 300.0, trained_accuracy=0.9),
        member(GUESS, 0.72, 500.0),
        member(SLOW, 0.78, 900.0, trained_accuracy=0.88),
    ]
    assert select(members, Limits()).id == FAST
    assert select(members[1:], Limits()).id == SLOW
    members[1] = member(GUESS, 0.76, 500.0)
    assert select(members, Limits()).id == GUESS
    assert select(members, Limits(min_accuracy=0.905)).id == GUESS
    with pytest.raises(InfeasibleError, match=r"nearest is ge55 .* it misses accuracy by 1.1%"):
        select(members, Limits(min_accuracy=0.92))


def test_members_that_were_trained_in_another_way_count_as_untrained():
    """Two members gained 0.2 and 0.1 by one recipe, so 0.15 is expected of the third as well."""
    members = [
        member(FAST, 0.7, 300.0, trained_accuracy=0.9, recipe="6 epochs"),
        member(GUESS, 0.72, 500.0, trained_accuracy=0.99, recipe="60 epochs"),
        member(SLOW, 0.78, 900.0, trained_accuracy=0.88, recipe="6 epochs"),
    ]
    assert expected_accuracies(members) == [0.9, pytest.approx(0.87), 0.88]
    assert expected_accuracies(members[:0]) == []


def test_select_names_nearest_member_when_nothing_fits():
    with pytest.raises(
        InfeasibleError, match=r"nearest is wa57 .*0.3 ms measured.*latency by 50.0%"
    ):
        select(FRONT, Limits(max_latency_ms=0.2))
    with pytest.raises(InfeasibleError) as error:
        select(FRONT, Limits(max_latency_ms=0.2))
    assert error.value.exit_status == 1


@pytest.mark.parametrize("name", ["macs", "params", "peak_memory_bytes"])
def test_a_limit_on_a_count_chooses_the_best_below_it_or_names_the_nearest(name):
    front = [member(SLOW, 0.9, 300.0, **{name: 1000}), member(FAST, 0.7, 300.0, **{name: 500})]
    assert select(front, Limits(**{f"max_{name}": 1000})).id == SLOW
    assert select(front, Limits(**{f"max_{name}": 999})).id == FAST
    words = name.removesuffix("_bytes").replace("_", " ")
    with pytest.raises(InfeasibleError, match=f"nearest is {FAST} .* it misses {words} by 25.0%"):
        select(front, Limits(**{f"max_{name}": 400}))


def test_impossible_limits_are_refused():
    with pytest.raises(RequestError, match="max_latency_ms is -1"):
        select(FRONT, Limits(max_latency_ms=-1))
    with pytest.raises(RequestError, match=r"fraction, such as 0.95"):
        select(FRONT, Limits(min_accuracy=95))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
@pytest.mark.parametrize("name", [each.name for each in fields(Limits)])
def test_limit_must_be_a_finite_number_above_zero(name, value):
    with pytest.raises(RequestError, match=f"{name} is {value}"):
        Limits(**{name: value})
