"""The length of a training with a time budget, on a clock whose pace is known."""

import numpy as np
import pytest

from nas.supernet.optimization import learning_rate
from nas.supernet.recipe import Recipe
from nas.supernet.schedule import DECISIONS, Schedule

BUDGET_S = 100.0


def run(step_seconds, schedule=None):
    """Return the schedule of a training whose steps take given times, and its duration.

    Args:
        step_seconds: function of the seconds so far.
        schedule: schedule of the training; that of a time budget by default.
    """
    schedule, spent_s, step = schedule or Schedule(1, BUDGET_S), 0.0, 0
    while step < schedule.steps:
        schedule.decide(step, spent_s)
        spent_s += step_seconds(spent_s)
        step += 1
    return schedule, spent_s


def test_position_without_budget_is_the_number_of_the_step():
    schedule = Schedule(7)
    assert [schedule.position(step) for step in range(8)] == list(range(8))
    assert (schedule.steps, schedule.end) == (7, 7)
    assert not any(schedule.decide(step, 9.0) for step in range(8))


def test_steady_pace_fills_the_budget_and_completes_the_schedule():
    schedule, spent_s = run(lambda _: 0.13)
    assert spent_s == pytest.approx(BUDGET_S, rel=0.002)
    assert schedule.steps == round(BUDGET_S / 0.13)
    assert schedule.position(schedule.steps) == pytest.approx(schedule.end)
    positions = [schedule.position(step) for step in range(schedule.steps + 1)]
    assert (np.diff(positions) > 0).all()
    assert len(schedule.decisions) <= DECISIONS


@pytest.mark.parametrize(
    "pace",
    [
        lambda spent_s: 0.4 if spent_s < 30 else 0.1,
        lambda spent_s: 0.1 if spent_s < 70 else 0.3,
        lambda spent_s: 0.1 * (1 + 0.4 * np.sin(spent_s / 4)),
        lambda spent_s: 5.0 if spent_s == 0 else 0.1,
    ],
    ids=["busy at first", "busy later", "in waves", "slow first step"],
)
def test_training_ends_within_five_percent_of_its_budget(pace):
    schedule, spent_s = run(pace)
    assert spent_s == pytest.approx(BUDGET_S, rel=0.05)
    last = schedule.position(schedule.steps - 1)
    rates = Recipe(learning_rate=0.1)
    assert learning_rate(rates, last, schedule.end) < 0.001, "the cosine has come to its end"
    assert learning_rate(rates, last, schedule.end, floor=0.05) == pytest.approx(0.005)


def test_budget_that_is_spent_ends_the_training_soon():
    schedule, spent_s = run(lambda spent_s: 40.0 if spent_s else 1.0)
    assert schedule.steps <= 4
    assert spent_s < 2 * BUDGET_S


def test_positions_before_a_decision_do_not_depend_on_it():
    schedule = Schedule(1, BUDGET_S)
    schedule.decide(10, 5.0)
    before = [schedule.position(step) for step in range(41)]
    schedule.decide(40, 50.0)
    assert [schedule.position(step) for step in range(41)] == before
    assert schedule.steps == 40 + round(50 / 1.5)


def test_training_of_epochs_does_all_steps_if_its_longest_time_allows_them():
    schedule = Schedule(500, longest_s=BUDGET_S)
    assert run(lambda _: 0.19, schedule)[1] == pytest.approx(95)
    assert schedule.decisions == [], "its steps are those of a training without a limit"


def test_training_of_epochs_that_is_too_slow_ends_in_time_with_its_schedule_completed():
    schedule = Schedule(500, longest_s=BUDGET_S)
    assert run(lambda _: 0.5, schedule)[1] == pytest.approx(BUDGET_S, rel=0.02)
    assert schedule.steps == pytest.approx(200, rel=0.02)
    assert schedule.position(schedule.steps) == pytest.approx(500)


def test_training_with_a_time_budget_does_no_more_than_the_largest_number_of_steps():
    schedule = Schedule(1, BUDGET_S, most_steps=300)
    assert run(lambda _: 0.1, schedule)[1] == pytest.approx(30)
    assert schedule.position(300) == pytest.approx(schedule.end)
