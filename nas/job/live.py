"""Writes the report of a run while its job works on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nas.errors import first_line
from nas.run.progress import JobProgress

if TYPE_CHECKING:
    from nas.run.run import Run

INTERVAL_S = 180.0
"""Least seconds between two reports of a search."""

MAX_SHARE = 0.01
"""Largest share of the time of a search that its reports may take."""

MAX_STAGE_SHARE = 0.1
"""Largest duration of a report over that of the stage that it follows.

A job that is repeated passes its stages in an instant, and needs no report after each of them.
"""

FIRST_REPORT_S = 0.2
"""Duration of a report of which none was written yet."""


class LiveReport:
    """Writes the report of a running job anew. An error is a message, and never ends the job.

    Args:
        run: the run, whose folder this process has locked.
        progress: receives a message if the report cannot be written.
    """

    def __init__(self, run: Run, progress: JobProgress) -> None:
        self._run, self._progress = run, progress
        self._seconds = FIRST_REPORT_S
        self._written = time.monotonic()
        self._error = ""

    def after_stage(self, seconds: float) -> None:
        """Write the report after a stage, unless it was short or was the last one.

        Args:
            seconds: duration of the stage.
        """
        if self._run.record.remaining and self._seconds <= MAX_STAGE_SHARE * seconds:
            self._write()

    def during_search(self, write_trials: Callable[[], None]) -> None:
        """Write the trials and the report, if it is time for that.

        Args:
            write_trials: writes the trials so far to the run.
        """
        pause_s = max(INTERVAL_S, self._seconds / MAX_SHARE)
        if time.monotonic() - self._written >= pause_s:
            self._write(write_trials)

    def after_failure(self) -> None:
        """Write the report of a job that has failed or was interrupted, if it was not the last."""
        if self._run.record.remaining:
            self._write()

    def _write(self, write_trials: Callable[[], None] = lambda: None) -> None:
        from nas.report import page

        start = time.monotonic()
        try:
            write_trials()
            page.build(self._run)
        except Exception as error:  # The job is worth more than its report.
            text = first_line(error)
            if text != self._error:
                self._progress.note(f"the report of the run so far could not be written: {text}")
            self._error = text
        self._written = time.monotonic()
        self._seconds = self._written - start
