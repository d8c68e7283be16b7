"""The length of a training: a number of steps, or what a time budget allows.

A budget in seconds is turned into steps again and again as the training goes, because the pace of a
machine changes. Learning rate and progressive shrinking follow the *position* of a step, which runs
from 0 to a fixed end. So the schedule is completed, however many steps there are in the end.

The number of CPU threads is decided in the same way. The threads of a step wait for each other at
every op, so a step on all cores becomes several times slower as soon as another program uses one of
them. Then a step on fewer threads is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from nas.records import ScheduleRow

BUDGET_POSITIONS = 1000
"""End of the positions of a training with a time budget."""

DECISIONS = 20
"""Number of parts of a training, before each of which the number of steps is decided anew."""

MAX_PART_SHARE = 1.2 / DECISIONS
"""Share of the budget after which a part ends early, because its steps are slower than planned."""

MIN_STEPS_OF_PACE = 3
"""Fewest steps from which the pace is measured."""

STEPS_OF_TRIAL = 2
"""Most steps for which another number of threads is tried."""

BUSY_RATIO = 1.4
"""Time of a step over the shortest one before from which other programs may use a core."""


class _Part(NamedTuple):
    """A part of a training: its number of threads, and the seconds of a step."""

    threads: int | None
    step_s: float


class Schedule:
    """The number of steps of a training, and the position of each step.

    Args:
        steps: number of steps of a training without a time budget.
        budget_s: time budget in seconds; None for exactly `steps`.
        decisions: what was decided so far, in the order of the steps.
        max_threads: number of CPU threads of a step on a quiet machine; fewer are used on a busy
            one if there is a time budget. None for torch's own number at any time.

    Attributes:
        end: positions run from 0 to this number. Without a budget it is the number of steps.
        decisions: what was decided so far.
    """

    def __init__(
        self,
        steps: int,
        budget_s: float | None = None,
        decisions: Sequence[ScheduleRow] = (),
        max_threads: int | None = None,
    ) -> None:
        self.end = steps if budget_s is None else BUDGET_POSITIONS
        self.decisions = list(decisions)
        self._budget_s, self._max_threads = budget_s, max_threads

    @property
    def steps(self) -> int:
        """Number of steps of the whole training, as it was decided last."""
        return self.decisions[-1].steps if self.decisions else self.end

    def position(self, step: int) -> float:
        """Return the position of a step, in [0, `end`].

        What is left of the positions after a decision is spread evenly over the steps that it
        leaves. Without any decision, it is the number of the step.
        """
        position, first, steps = 0.0, 0, self.end
        for decision in self.decisions:
            if decision.step > step:
                break
            position += (decision.step - first) * ((self.end - position) / (steps - first))
            first, steps = decision.step, decision.steps
        return position + (step - first) * ((self.end - position) / (steps - first))

    def is_due(self, step: int, spent_s: float) -> bool:
        """Return whether the number of steps is to be decided anew before a step.

        Args:
            step: number of steps done.
            spent_s: time that all of them took.
        """
        if self._budget_s is None:
            return False
        last, last_s = self._last
        if self._is_trial:
            # A trial that takes longer than the steps before it has failed already.
            earlier_s = self._parts()[-1].step_s
            is_slow = spent_s - last_s > STEPS_OF_TRIAL * earlier_s
            return step - last >= STEPS_OF_TRIAL or (step > last and is_slow)
        if step - last < MIN_STEPS_OF_PACE:
            return False
        if not self.decisions or spent_s - last_s > MAX_PART_SHARE * self._budget_s:
            return True
        part = self.end / DECISIONS
        return int(self.position(step) / part) > int(self.position(last) / part)

    def threads(self, step: int) -> int | None:
        """Return the number of CPU threads of a step; None for torch's own number."""
        threads = self._max_threads
        for decision in self.decisions:
            if decision.step > step:
                break
            threads = decision.threads
        return threads

    def decide(self, step: int, spent_s: float) -> ScheduleRow:
        """Decide anew from the pace since the last decision, and return the decision.

        Args:
            step: number of steps done.
            spent_s: time that all of them took.
        """
        assert self._budget_s is not None
        parts = self._parts((step, spent_s))
        latest = parts[-1]
        # A trial ends with the faster number of threads.
        fastest = min(parts[-2:], key=lambda part: part.step_s) if self._is_trial else latest
        threads = fastest.threads
        if threads is not None and not self._is_trial and len(parts) > 1:
            threads = self._threads_to_try(parts)
        left = (self._budget_s - spent_s) / max(fastest.step_s, 1e-9)
        decision = ScheduleRow(
            schema=1,
            step=step,
            steps=step + max(1, round(left)),
            seconds=spent_s,
            threads=threads,
        )
        self.decisions.append(decision)
        return decision

    def _threads_to_try(self, parts: Sequence[_Part]) -> int:
        """Return the number of threads of the next steps, another one if it may be faster."""
        *earlier, (threads, step_s) = parts
        assert threads is not None
        assert self._max_threads is not None
        if threads < self._max_threads:
            return self._max_threads
        fewer = max(1, threads // 2)
        is_untried = all(part.threads != fewer for part in earlier)
        shortest_s = min((p.step_s for p in earlier if p.threads == threads), default=step_s)
        return fewer if is_untried or step_s > BUSY_RATIO * shortest_s else threads

    @property
    def _last(self) -> tuple[int, float]:
        """Step and time of the last decision."""
        return (self.decisions[-1].step, self.decisions[-1].seconds) if self.decisions else (0, 0.0)

    @property
    def _is_trial(self) -> bool:
        """Whether the last decision changed the number of threads."""
        counts = [self._max_threads, *(decision.threads for decision in self.decisions)]
        return len(counts) > 1 and counts[-1] != counts[-2]

    def _parts(self, *now: tuple[int, float]) -> list[_Part]:
        """Return the parts of the training between the decisions, and up to now.

        Args:
            now: number of steps done, and the time that they took, if the latest part is wanted.
        """
        ends = [*((each.step, each.seconds) for each in self.decisions), *now]
        return [
            # A resumed training may repeat steps in less time than they took before.
            _Part(self.threads(first), max(0.0, end_s - first_s) / (end - first))
            for (first, first_s), (end, end_s) in pairwise([(0, 0.0), *ends])
        ]
