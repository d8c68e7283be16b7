"""When a search ends: after so many trials or minutes, when nothing gets better, when told to."""

from __future__ import annotations

import signal
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from nas.errors import RequestError
from nas.search.objectives import Objective
from nas.search.pareto import hypervolume
from nas.search.trials import Trial


@dataclass(frozen=True)
class Budget:
    """What a search may spend; it ends with whatever is used up first.

    Args:
        trials: distinct architectures to complete.
        minutes: of searching, those of earlier starts included.
        stall: completed trials in a row that do not change the front.

    Raises RequestError for no limit at all, or one of nothing.
    """

    trials: int | None = None
    minutes: float | None = None
    stall: int | None = None

    def __post_init__(self) -> None:
        given = [each for each in (self.trials, self.minutes, self.stall) if each is not None]
        if not given:
            raise RequestError(
                "This search would never end.", remedy="Give trials, minutes or a stall."
            )
        if not all(each > 0 for each in given):
            raise RequestError("A search's trials, minutes and stall must be above nothing.")


class Progress:
    """How far a search is: its front, and the hypervolume over the completed trials.

    The hypervolume is normalised by the first `startup` completed trials: from the best value of
    each objective to the worst. So it is comparable within a search, and above 1 when the front
    leaves that box behind.

    Attributes:
        seconds: in which any trial was under way.
        history: after each completed trial how many there are, the seconds, and the hypervolume.
    """

    def __init__(self, objectives: Sequence[Objective], startup: int) -> None:
        self._objectives = [o for o in objectives if not o.limit_only]
        self._startup = startup
        self._first: list[list[float]] = []
        self._box: tuple[np.ndarray, np.ndarray] | None = None
        self._front = np.empty((0, len(self._objectives)))
        self.completed = 0
        self.since_gain = 0
        self.seconds = 0.0
        self._spans: list[tuple[float, float]] = []
        self.hypervolume: float | None = None
        self.history: list[tuple[int, float, float | None]] = []

    def learn(self, trial: Trial) -> None:
        """Takes in a trial of any state, in the order in which they ended."""
        self._count_seconds(trial.ended - trial.seconds, trial.ended)
        if trial.state != "complete":
            return
        self.completed += 1
        point = np.array([o.sign * trial.values[o.name] for o in self._objectives])
        gained = not (self._front <= point).all(axis=1).any()
        self.since_gain = 0 if gained else self.since_gain + 1
        if gained:
            kept = self._front[~(point <= self._front).all(axis=1)]
            self._front = np.vstack([kept, point])
        if self._box is None:
            self._first.append(point.tolist())
            if self.completed >= self._startup:
                values = np.array(self._first)
                best, worst = values.min(axis=0), values.max(axis=0)
                self._box = best, np.where(worst > best, worst - best, 1.0)
                gained = True
        if gained and self._box is not None:
            best, span = self._box
            points = (self._front - best) / span
            self.hypervolume = hypervolume(points, [1.0] * points.shape[1])
        self.history.append((self.completed, self.seconds, self.hypervolume))

    def _count_seconds(self, begun: float, ended: float) -> None:
        """Trials of several processes overlap, and come in any order."""
        first = bisect_left(self._spans, begun, key=lambda span: span[1])
        after = bisect_right(self._spans, ended, key=lambda span: span[0])
        overlapped = self._spans[first:after]
        if overlapped:
            begun, ended = min(begun, overlapped[0][0]), max(ended, overlapped[-1][1])
        self._spans[first:after] = [(begun, ended)]
        self.seconds += ended - begun - sum(to - since for since, to in overlapped)

    def used_up(self, budget: Budget, seconds: float) -> str | None:
        """Why the search ends now; None if it goes on.

        Args:
            budget: of the search.
            seconds: since this start, without the trials of earlier ones.
        """
        if budget.trials is not None and self.completed >= budget.trials:
            return "all trials done"
        if budget.minutes is not None and seconds >= 60 * budget.minutes:
            return f"{budget.minutes:g} minutes are over"
        if budget.stall is not None and self.since_gain >= budget.stall:
            return f"{budget.stall} trials in a row have not improved the front"
        return None


class Interrupt:
    """Ctrl-C: the first one asks to end after the trial in flight, the second ends at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def heeded(self, told: Callable[[str], None]) -> Iterator[Interrupt]:
        """While this lasts, a first Ctrl-C is only remembered, where Python lets one do that."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            told("ending after the trial in flight; Ctrl-C again ends at once")

        before: Any = signal.signal(signal.SIGINT, ask)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)
