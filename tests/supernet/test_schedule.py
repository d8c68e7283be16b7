"""The length of a training with a time budget, on a clock whose pace is known."""

import itertools

import numpy as np
import pytest

from nas.supernet.recipe import learning_rate
from nas.supernet.schedule import DECISIONS, Schedule
from nas.supernet.settings import TrainingSettings

BUDGET_S = 100.0


def run(step_seconds, max_threads=None):
    """Return the schedule of a training whose steps take given times, and its duration.

    Args:
        step_seconds: function of the seconds so far, and of the threads if there is a maximum.
        max_threads: largest number of threads.
    """
    schedule, spent_s, step = Schedule(1, BUDGET_S, max_threads=max_threads), 0.0, 0
    while step < schedule.steps:
        if schedule.is_due(step, spent_s):
            schedule.decide(step, spent_s)
        threads = () if max_threads is None else (schedule.threads(step),)
        spent_s += step_seconds(spent_s, *threads)
        step += 1
    return schedule, spent_s


QUIET_S, BUSY_S = {1: 0.17, 2: 0.1}, {1: 0.18, 2: 0.6}
"""Seconds of a step by threads: of a quiet machine, and with another program on one core."""


def pace_while(begin_s, end_s):
    """Return the pace of a machine that another program uses for some time."""
    return lambda spent_s, threads: (BUSY_S if begin_s <= spent_s < end_s else QUIET_S)[threads]


def test_position_without_budget_is_the_number_of_the_step():
    schedule = Schedule(7)
    assert [schedule.position(step) for step in range(8)] == list(range(8))
    assert (schedule.steps, schedule.end) == (7, 7)
    assert not any(schedule.is_due(step, 0.0) for step in range(8))


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
    rates = TrainingSettings(learning_rate=0.1)
    assert learning_rate(rates, last, schedule.end) < 0.001, "the cosine has come to its end"


def test_budget_that_is_spent_ends_the_training_soon():
    schedule, spent_s = run(lambda spent_s: 40.0 if spent_s else 1.0)
    assert schedule.steps <= 4
    assert spent_s < 2 * BUDGET_S


def test_recorded_decisions_give_the_same_positions():
    noise = itertools.cycle([0.1, 0.2, 0.15])
    schedule, _ = run(lambda _: next(noise))
    again = Schedule(1, BUDGET_S, schedule.decisions)
    assert again.steps == schedule.steps
    for step in range(schedule.steps):
        assert again.position(step) == schedule.position(step)


def test_positions_before_a_decision_do_not_depend_on_it():
    schedule = Schedule(1, BUDGET_S)
    schedule.decide(10, 5.0)
    before = [schedule.position(step) for step in range(41)]
    schedule.decide(40, 50.0)
    assert [schedule.position(step) for step in range(41)] == before
    assert schedule.steps == 40 + round(50 / 1.5)


def test_quiet_machine_keeps_all_threads():
    schedule, spent_s = run(pace_while(0, 0), max_threads=2)
    assert spent_s == pytest.approx(BUDGET_S, rel=0.02)
    fewer = [step for step in range(schedule.steps) if schedule.threads(step) == 1]
    assert 0 < len(fewer) <= 2, "one trial"
    assert schedule.steps >= 0.99 * BUDGET_S / QUIET_S[2]


@pytest.mark.parametrize(
    ("begin_s", "end_s"), [(0, 100), (0, 40), (30, 70), (50, 100)], ids=lambda value: str(value)
)
def test_busy_core_is_left_to_the_other_program_as_long_as_it_runs(begin_s, end_s):
    schedule, spent_s = run(pace_while(begin_s, end_s), max_threads=2)
    assert spent_s == pytest.approx(BUDGET_S, rel=0.05)
    busy_s = end_s - begin_s
    fastest = busy_s / BUSY_S[1] + (BUDGET_S - busy_s) / QUIET_S[2]
    assert schedule.steps >= 0.8 * fastest
    fixed, _ = run(lambda spent_s: pace_while(begin_s, end_s)(spent_s, 2))
    assert schedule.steps > 1.1 * fixed.steps


def test_noise_does_not_change_the_number_of_threads_for_long():
    rng = np.random.default_rng(0)
    schedule, _ = run(lambda _, threads: QUIET_S[threads] * rng.uniform(1, 1.3), max_threads=2)
    counts = [schedule.threads(step) for step in range(schedule.steps)]
    assert counts.count(1) < 0.02 * len(counts)


def test_recorded_decisions_give_the_same_threads():
    schedule, _ = run(pace_while(20, 60), max_threads=2)
    again = Schedule(1, BUDGET_S, schedule.decisions, max_threads=2)
    for step in range(schedule.steps):
        assert again.threads(step) == schedule.threads(step)
        assert again.position(step) == schedule.position(step)


def test_single_thread_and_other_devices_have_nothing_to_choose():
    for max_threads in (1, None):
        schedule = Schedule(1, BUDGET_S, max_threads=max_threads)
        for step in range(3, 400, 20):
            schedule.decide(step, 0.1 * step)
        assert {schedule.threads(step) for step in range(400)} == {max_threads}
