import math
import os
import signal

import numpy as np
import pytest

from nas.errors import RequestError
from nas.search import Objective, hypervolume, non_dominated
from nas.search.budget import Budget, SearchProgress, stop_requested_by_ctrl_c
from nas.search.trial import Trial
from nas.space import Architecture, SearchSpace, Stage

SPACE = SearchSpace("s", (Stage("head", "linear_classifier"),))


def objective(name, **settings):
    return Objective(name, lambda batch: [0.0 for _ in batch], **settings)


def trial(number, values, state="complete", seconds=0.0, ended_at=None):
    ended_at = 100.0 * number if ended_at is None else ended_at
    architecture = Architecture(SPACE, (("n", number),))
    return Trial(str(number), architecture, {}, state, values, seconds, ended_at=ended_at)


def trials_of(points, names="abcdef"):
    return [
        trial(number, dict(zip(names, map(float, point), strict=False)))
        for number, point in enumerate(points)
    ]


def normalised(points, startup):
    """Return all points, normalised by the first ones."""
    first = points[:startup]
    span = first.max(axis=0) - first.min(axis=0)
    return (points - first.min(axis=0)) / np.where(span > 0, span, 1)


def fronts(points):
    """Return the front after each point, as a set of values."""
    return [
        {tuple(points[at]) for at in non_dominated(points[:count])}
        for count in range(len(points) + 1)
    ]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_progress_is_that_of_the_front_of_all_points(objectives):
    rng = np.random.default_rng(objectives)
    points = rng.integers(0, 6 * objectives, (60, objectives)) * 10.0 ** np.arange(objectives)
    seen = fronts(points)
    progress = SearchProgress([objective(name) for name in "abc"[:objectives]], startup=10)
    for count, each in enumerate(trials_of(points), start=1):
        progress.update(each)
        assert progress.completed == count
        since = next(back for back in range(count + 1) if seen[count - back - 1] != seen[count])
        assert progress.trials_since_improvement == since
        assert progress.history[-1] == (count, progress.seconds, progress.hypervolume)
        if count < 10:
            assert progress.hypervolume is None
        else:
            expected = hypervolume(normalised(points[:count], 10), [1.0] * objectives)
            assert progress.hypervolume == pytest.approx(expected)
    assert len(progress.history) == 60
    # A point far better than the first ones raises the hypervolume above 1.
    progress.update(trials_of([np.full(objectives, -1e4)])[0])
    assert progress.hypervolume > 1


def test_hypervolume_negates_maximised_objectives_and_ignores_limits():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (40, 3))
    progress = SearchProgress(
        [
            objective("a", direction="maximize"),
            objective("limited", limit=1.0, limit_only=True),
            objective("b"),
        ],
        startup=5,
    )
    for each in trials_of(points, names=("a", "b", "limited")):
        progress.update(each)
    minimised = points[:, :2] * [-1, 1]
    assert progress.hypervolume == pytest.approx(hypervolume(normalised(minimised, 5), (1.0, 1.0)))


def test_infeasible_and_failed_trials_count_only_their_seconds():
    progress = SearchProgress([objective("a")], startup=2)
    progress.update(trial(0, {"a": 2.0}, seconds=1.5))
    progress.update(trial(1, {"a": -99.0}, "infeasible", seconds=2.0))
    progress.update(trial(2, {}, "failed", seconds=4.0))
    assert (progress.completed, progress.hypervolume) == (1, None)
    assert progress.trials_since_improvement == 0
    progress.update(trial(3, {"a": 1.0}, seconds=0.25))
    assert (progress.completed, progress.hypervolume, progress.seconds) == (2, 1.0, 7.75)


def progress_after(points):
    progress = SearchProgress([objective("a")], startup=2)
    for each in trials_of([[point] for point in points]):
        progress.update(each)
    return progress


def test_search_stops_at_the_first_limit():
    budget = Budget(trials=4, minutes=1, stall=2)
    assert progress_after([4, 3, 2]).stop_reason(budget, 0) is None
    assert "trials done" in progress_after([4, 3, 2, 1]).stop_reason(budget, 0)
    assert "minutes" in progress_after([4, 3]).stop_reason(budget, 60)
    assert "in a row" in progress_after([3, 4, 5]).stop_reason(budget, 0)


def test_budget_without_a_limit_is_refused():
    with pytest.raises(RequestError, match="never end"):
        Budget()


@pytest.mark.parametrize("name", ["trials", "minutes", "stall"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_budget_with_a_limit_that_is_not_positive_is_refused(name, value):
    with pytest.raises(RequestError, match="must be positive"):
        Budget(**{name: value})
    with pytest.raises(RequestError, match="must be positive"):
        Budget(**{"trials": 5, "minutes": 5.0, "stall": 5, name: value})


def test_first_ctrl_c_requests_a_stop_and_second_one_stops_at_once():
    messages = []
    before = signal.getsignal(signal.SIGINT)
    with stop_requested_by_ctrl_c(messages.append) as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        assert len(messages) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("order", ["begin", "end", "mixed"])
def test_overlapping_trials_of_several_processes_count_once(order):
    progress = SearchProgress([objective("a")], startup=2)
    rng = np.random.default_rng(0)
    begin = rng.uniform(0, 60, 40)
    end = begin + rng.uniform(0, 3, 40)
    orders = {"begin": np.argsort(begin), "end": np.argsort(end), "mixed": rng.permutation(40)}
    for at in orders[order]:
        progress.update(trial(at, {"a": 1.0}, seconds=end[at] - begin[at], ended_at=end[at]))
    times = np.linspace(0, 63, 200_001)
    is_running = ((begin[:, None] <= times) & (times < end[:, None])).any(axis=0)
    assert 0.5 < is_running.mean() < 0.9
    assert progress.seconds == pytest.approx(63 * is_running.mean(), abs=0.05)
