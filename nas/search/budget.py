"""When a search stops: its budget, its model, its progress, and Ctrl-C.

With a model, a search stops when the hypervolume that its model expects from the next trials has
been below a threshold for several plans in a row. To end a search by what its acquisition function
expects is an old rule: Jones et al. 1998, "Efficient global optimization of expensive black-box
functions", stop when the expected improvement is below 1% of the best value. Newer rules bound the
regret by the posterior (Makarova et al. 2022, "Automatic termination for hyperparameter
optimization"; Ishibashi et al. 2023, "A stopping criterion for Bayesian optimization by the gap of
expected minimum simple regrets"). The rule here is that of Jones et al. for a Pareto front: the
hypervolume takes the place of the best value, and a plan of a tenth of the trials so far that of
one candidate, because one more candidate always promises little. The number of candidates is a
share of the trials so that the rule weighs a gain against the time that the search has taken
already.

The threshold was chosen on three problems whose true front is known, see docs/search.md.
"""

from __future__ import annotations

import signal
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

import numpy as np

from nas.errors import RequestError
from nas.search.objectives import Objective
from nas.search.pareto import hypervolume
from nas.search.posterior import MAX_NORMALISED
from nas.search.surrogate import MAX_MAGNITUDE, MIN_SPREAD
from nas.search.trial import Trial

Stall = int | Literal["auto"]
"""A number of trials without a better front, or "auto" for the rule of the model."""

MAX_EXPECTED_GAIN = 0.001
"""Share of the front's hypervolume that a plan has to promise for the search to go on."""

PLANS_IN_A_ROW = 3
"""Number of latest plans that must all promise less.

A plan sees a sample of the candidates and can miss a region, and hyperparameters that were fitted
anew can be surer than the data allow.
"""

MIN_TRIALS_PER_SPACE = 20
"""Default of the completed trials before a search may end by its model, for each space."""

REASON = f"10% more trials are expected to improve the front by less than {MAX_EXPECTED_GAIN:.1%}"
"""The reason of such an end, for messages and reports."""


@dataclass(frozen=True)
class Budget:
    """Limits of a search, which stops at the first one that it reaches.

    Args:
        trials: number of distinct architectures to complete.
        minutes: duration of the search, including the time before it was resumed.
        stall: number of consecutive completed trials that do not change the Pareto front; or
            "auto", with which the search asks its sampler's model.
        fewest: completed trials before the model may end the search.

    Raises RequestError if there is no limit, or one that is not positive.
    """

    trials: int | None = None
    minutes: float | None = None
    stall: Stall | None = None
    fewest: int = 0

    def __post_init__(self) -> None:
        limits = [each for each in (self.trials, self.minutes, self.stall) if each is not None]
        if not limits:
            raise RequestError(
                "This search would never end.", remedy="Give trials, minutes or a stall."
            )
        if not all(limit == "auto" or limit > 0 for limit in limits):
            raise RequestError("A search's trials, minutes and stall must be positive.")


class SearchProgress:
    """The Pareto front of a search so far, its hypervolume, and the time that it took.

    The first `startup` completed trials normalise the hypervolume: the best value of each objective
    among them becomes 0, the worst one becomes 1 and is the reference point. Hypervolumes of one
    search are therefore comparable. It exceeds 1 if the front goes far enough beyond these values.

    Args:
        objectives: objectives of the search.
        startup: number of completed trials before there is a hypervolume.

    Attributes:
        completed: number of completed trials.
        trials_since_improvement: number of completed trials since the front last changed.
        seconds: time during which at least one trial was being evaluated.
        hypervolume: normalised hypervolume, or None before `startup` trials are completed.
        history: `(completed, seconds, hypervolume)` after each completed trial.
        trials: all trials that have ended.
    """

    def __init__(self, objectives: Sequence[Objective], startup: int) -> None:
        self._objectives = [o for o in objectives if not o.limit_only]
        self._startup = startup
        self._first_points: list[list[float]] = []
        self._normalisation: tuple[np.ndarray, np.ndarray] | None = None
        self._front = np.empty((0, len(self._objectives)))
        self._intervals: list[tuple[float, float]] = []
        self.completed = 0
        self.trials_since_improvement = 0
        self.seconds = 0.0
        self.hypervolume: float | None = None
        self.history: list[tuple[int, float, float | None]] = []
        self.trials: list[Trial] = []

    def update(self, trial: Trial) -> None:
        """Include a trial that has ended, whatever its state."""
        self.trials.append(trial)
        self._add_interval(trial.ended_at - trial.seconds, trial.ended_at)
        if trial.state != "complete":
            return
        self.completed += 1
        point = np.array([o.sign * trial.values[o.name] for o in self._objectives])
        point = np.clip(point, -MAX_MAGNITUDE, MAX_MAGNITUDE)
        has_changed = not (self._front <= point).all(axis=1).any()
        self.trials_since_improvement = 0 if has_changed else self.trials_since_improvement + 1
        if has_changed:
            not_dominated = self._front[~(point <= self._front).all(axis=1)]
            self._front = np.vstack([not_dominated, point])
        if self._normalisation is None:
            self._first_points.append(point.tolist())
            if self.completed >= self._startup:
                first_points = np.array(self._first_points)
                best, worst = first_points.min(axis=0), first_points.max(axis=0)
                self._normalisation = best, np.where(worst - best > MIN_SPREAD, worst - best, 1.0)
                has_changed = True
        if has_changed and self._normalisation is not None:
            best, span = self._normalisation
            # One value of 1e300 must not turn the others into infinities.
            points = np.clip((self._front - best) / span, -MAX_NORMALISED, 1.0)
            self.hypervolume = hypervolume(points, [1.0] * points.shape[1])
        self.history.append((self.completed, self.seconds, self.hypervolume))

    def _add_interval(self, begin: float, end: float) -> None:
        """Add the time of a trial, and count once what overlaps with trials of other processes.

        The trials come in any order. `_intervals` holds disjoint intervals in ascending order.
        """
        first = bisect_left(self._intervals, begin, key=lambda interval: interval[1])
        after = bisect_right(self._intervals, end, key=lambda interval: interval[0])
        overlapping = self._intervals[first:after]
        if overlapping:
            begin, end = min(begin, overlapping[0][0]), max(end, overlapping[-1][1])
        self._intervals[first:after] = [(begin, end)]
        self.seconds += end - begin - sum(upper - lower for lower, upper in overlapping)

    def stop_reason(self, budget: Budget, seconds: float) -> str | None:
        """Return the reason to stop the search now, or None if its budget is not used up.

        Args:
            budget: budget of the search.
            seconds: duration of the search, including the time before it was resumed.
        """
        if budget.trials is not None and self.completed >= budget.trials:
            return "all trials done"
        if budget.minutes is not None and seconds >= 60 * budget.minutes:
            return f"{budget.minutes:.3g} minutes are over"
        stall = budget.stall
        if isinstance(stall, int) and self.trials_since_improvement >= stall:
            return f"{stall} trials in a row have not improved the front"
        return None


@contextmanager
def stop_requested_by_ctrl_c(on_message: Callable[[str], None]) -> Iterator[threading.Event]:
    """Turn a first Ctrl-C into a request to stop while the context is active.

    A second Ctrl-C stops at once. In a thread other than the main one nothing is handled, because
    Python does not allow it.

    Args:
        on_message: called with a sentence when a stop is requested.

    Yields:
        The event that is set when a stop is requested.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return

    def request_stop(number: int, frame: FrameType | None) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        on_message("stopping after the running trial; press Ctrl-C again to stop at once")

    previous: Any = signal.signal(signal.SIGINT, request_stop)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, previous)
