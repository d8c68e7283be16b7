import math
import os
import signal
import threading

import numpy as np
import pytest

from nas.errors import RequestError
from nas.search import Objective, hypervolume, non_dominated
from nas.search.budget import Budget, Interrupt, Progress
from nas.search.trials import Trial
from nas.space import Architecture, SearchSpace, Stage

SPACE = SearchSpace("s", (Stage("head", "linear_classifier"),))


def objective(name, **settings):
    return Objective(name, lambda batch: [0.0 for _ in batch], **settings)


def trial(number, values, state="complete", seconds=0.0, ended=None):
    ended = 100.0 * number if ended is None else ended
    architecture = Architecture(SPACE, (("n", number),))
    return Trial(str(number), architecture, {}, state, values, seconds, ended=ended)


def trials_of(points, names="abcdef"):
    return [
        trial(number, dict(zip(names, map(float, point), strict=False)))
        for number, point in enumerate(points)
    ]


def boxed(points, startup):
    """Normalised by the first ones, all points that were seen."""
    first = points[:startup]
    span = first.max(axis=0) - first.min(axis=0)
    return (points - first.min(axis=0)) / np.where(span > 0, span, 1)


def fronts(points):
    """The front after each point, as a set of values."""
    return [
        {tuple(points[at]) for at in non_dominated(points[:count])}
        for count in range(len(points) + 1)
    ]


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_the_hypervolume_is_that_of_all_points(objectives):
    rng = np.random.default_rng(objectives)
    points = rng.integers(0, 30, (60, objectives)) * 10.0 ** np.arange(objectives)
    progress = Progress([objective(name) for name in "abc"[:objectives]], startup=10)
    for count, each in enumerate(trials_of(points), start=1):
        progress.learn(each)
        assert progress.completed == count
        assert progress.history[-1] == (count, progress.seconds, progress.hypervolume)
        if count < 10:
            assert progress.hypervolume is None
        else:
            expected = hypervolume(boxed(points[:count], 10), [1.0] * objectives)
            assert progress.hypervolume == pytest.approx(expected)
    assert len(progress.history) == 60
    # Those that leave the box of the first ones behind count beyond 1.
    progress.learn(trials_of([np.full(objectives, -1e4)])[0])
    assert progress.hypervolume > 1


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_since_gain_counts_the_trials_that_left_the_front_as_it_was(objectives):
    points = np.random.default_rng(objectives).integers(0, 6, (80, objectives)).astype(float)
    progress = Progress([objective(name) for name in "abc"[:objectives]], startup=10)
    seen = fronts(points)
    for count, each in enumerate(trials_of(points), start=1):
        progress.learn(each)
        since = next(back for back in range(count + 1) if seen[count - back - 1] != seen[count])
        assert progress.since_gain == since


def test_maximised_objectives_and_mere_limits():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 1, (40, 3))
    progress = Progress(
        [
            objective("a", direction="maximize"),
            objective("limited", limit=1.0, limit_only=True),
            objective("b"),
        ],
        startup=5,
    )
    for each in trials_of(points, names=("a", "b", "limited")):
        progress.learn(each)
    minimised = points[:, :2] * [-1, 1]
    assert progress.hypervolume == pytest.approx(hypervolume(boxed(minimised, 5), (1.0, 1.0)))


def test_trials_without_all_values_count_only_their_seconds():
    progress = Progress([objective("a")], startup=2)
    progress.learn(trial(0, {"a": 2.0}, seconds=1.5))
    progress.learn(trial(1, {"a": -99.0}, "infeasible", seconds=2.0))
    progress.learn(trial(2, {}, "failed", seconds=4.0))
    assert (progress.completed, progress.since_gain, progress.hypervolume) == (1, 0, None)
    progress.learn(trial(3, {"a": 1.0}, seconds=0.25))
    assert (progress.completed, progress.hypervolume, progress.seconds) == (2, 1.0, 7.75)


def test_an_objective_that_is_the_same_for_all_does_not_hide_the_others():
    progress = Progress([objective("a"), objective("same")], startup=3)
    for number, value in enumerate((3.0, 2.0, 1.0)):
        progress.learn(trial(number, {"a": value, "same": 7.0}))
    assert progress.hypervolume == pytest.approx(1.0)
    progress.learn(trial(4, {"a": 0.0, "same": 7.0}))
    assert progress.hypervolume == pytest.approx(1.5)


def made(points):
    progress = Progress([objective("a")], startup=2)
    for each in trials_of([[point] for point in points]):
        progress.learn(each)
    return progress


def test_trials_are_used_up():
    budget = Budget(trials=3)
    assert made([1, 2]).used_up(budget, 1e9) is None
    assert "trials" in made([1, 2, 3]).used_up(budget, 0)
    assert "trials" in made([1, 2, 3, 4]).used_up(budget, 0)


def test_minutes_are_used_up():
    budget = Budget(minutes=1.5)
    assert made([1, 2, 3]).used_up(budget, 89.9) is None
    assert "1.5 minutes" in made([]).used_up(budget, 90)


def test_a_stall_is_so_many_trials_without_a_gain():
    budget = Budget(stall=2)
    assert made([3, 4]).used_up(budget, 1e9) is None
    assert "2 trials in a row" in made([3, 4, 3]).used_up(budget, 0)
    assert made([3, 4, 2, 5]).used_up(budget, 1e9) is None


def test_what_is_used_up_first_ends_a_search():
    budget = Budget(trials=4, minutes=1, stall=2)
    assert made([4, 3, 2]).used_up(budget, 0) is None
    assert "trials done" in made([4, 3, 2, 1]).used_up(budget, 0)
    assert "minutes" in made([4, 3]).used_up(budget, 60)
    assert "in a row" in made([3, 4, 5]).used_up(budget, 0)


def test_a_budget_without_any_limit_is_refused():
    with pytest.raises(RequestError, match="never end"):
        Budget()


@pytest.mark.parametrize("name", ["trials", "minutes", "stall"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_budget_of_nothing_is_refused(name, value):
    with pytest.raises(RequestError, match="above nothing"):
        Budget(**{name: value})
    with pytest.raises(RequestError, match="above nothing"):
        Budget(**{"trials": 5, "minutes": 5.0, "stall": 5, name: value})


def test_a_first_interruption_is_remembered_and_a_second_one_ends_at_once():
    said = []
    before = signal.getsignal(signal.SIGINT)
    with Interrupt().heeded(said.append) as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        assert len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_interruptions_are_left_alone_where_python_lets_nobody_heed_them():
    found = []

    def elsewhere():
        with Interrupt().heeded(found.append) as interrupt:
            found.append(interrupt.asked)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [False]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("order", ["begun", "ended", "mixed"])
def test_seconds_of_several_processes_count_once(order):
    progress = Progress([objective("a")], startup=2)
    rng = np.random.default_rng(0)
    begun = rng.uniform(0, 60, 40)
    ended = begun + rng.uniform(0, 3, 40)
    orders = {"begun": np.argsort(begun), "ended": np.argsort(ended), "mixed": rng.permutation(40)}
    for at in orders[order]:
        progress.learn(trial(at, {"a": 1.0}, seconds=ended[at] - begun[at], ended=ended[at]))
    moments = np.linspace(0, 63, 200_001)
    under_way = ((begun[:, None] <= moments) & (moments < ended[:, None])).any(axis=0)
    assert 0.5 < under_way.mean() < 0.9
    assert progress.seconds == pytest.approx(63 * under_way.mean(), abs=0.05)
