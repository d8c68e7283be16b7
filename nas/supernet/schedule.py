"""The length of a training: a number of steps, or what a time budget allows.

A budget in seconds is turned into steps again and again as the training goes, because the pace of a
machine changes. Learning rate and image size follow the *position* of a step, which runs from 0 to
a fixed end. So the schedule is completed, however many steps there are in the end.
"""

from __future__ import annotations

from nas.supernet.records import ScheduleDecision

BUDGET_POSITIONS = 1000
"""End of the positions of a training with a time budget."""

DECISIONS = 20
"""Number of parts of a training, before each of which the number of steps is decided anew."""

MAX_PART_SHARE = 1.2 / DECISIONS
"""Share of the budget after which a part ends early, because its steps are slower than planned."""

MIN_STEPS_OF_PACE = 3
"""Fewest steps from which the pace is measured."""


class Schedule:
    """The number of steps of a training, and the position of each step.

    Args:
        steps: number of steps of a training without a time budget.
        budget_s: time budget in seconds; None for `steps`.
        longest_s: seconds within which also a training without a time budget has to end. It does
            exactly `steps` if its pace allows that, and fewer otherwise.
        most_steps: largest number of steps of a training with a time budget; None for no limit.

    Attributes:
        end: positions run from 0 to this number. Without a budget it is the number of steps.
        decisions: what was decided so far, in the order of the steps.
    """

    def __init__(
        self,
        steps: int,
        budget_s: float | None = None,
        *,
        longest_s: float | None = None,
        most_steps: int | None = None,
    ) -> None:
        self.end = steps if budget_s is None else BUDGET_POSITIONS
        self.decisions: list[ScheduleDecision] = []
        self._most_steps = steps if budget_s is None else most_steps
        limits = [each for each in (budget_s, longest_s) if each is not None]
        self._budget_s = min(limits, default=None)
        # The first steps are slower: code is compiled. They must not shorten a training.
        self._first_decision_s = 0.0 if budget_s is not None else sum(limits) / DECISIONS

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

    def _is_due(self, budget_s: float, step: int, spent_s: float) -> bool:
        """Return whether the number of steps is to be decided anew before a step."""
        last, last_s = self._last
        if step - last < MIN_STEPS_OF_PACE or spent_s < self._first_decision_s:
            return False
        if not self.decisions or spent_s - last_s > MAX_PART_SHARE * budget_s:
            return True
        part = self.end / DECISIONS
        return int(self.position(step) / part) > int(self.position(last) / part)

    def decide(self, step: int, spent_s: float) -> ScheduleDecision | None:
        """Decide anew from the pace since the last decision if it is time, and return the decision.

        The result is None if it is not, or if a training without a time budget can do all its steps
        as ever.

        Args:
            step: number of steps done.
            spent_s: time that all of them took.
        """
        if self._budget_s is None or not self._is_due(self._budget_s, step, spent_s):
            return None
        last, last_s = self._last
        # A resumed training may repeat steps in less time than they took before.
        step_s = max(1e-9, spent_s - last_s) / (step - last)
        steps = step + max(1, round((self._budget_s - spent_s) / step_s))
        if self._most_steps is not None:
            steps = min(steps, max(self._most_steps, step + 1))
        if not self.decisions and steps == self.steps:
            return None
        decision = ScheduleDecision(step=step, steps=steps, seconds=spent_s)
        self.decisions.append(decision)
        return decision

    @property
    def _last(self) -> tuple[int, float]:
        """Step and time of the last decision."""
        return (self.decisions[-1].step, self.decisions[-1].seconds) if self.decisions else (0, 0.0)
