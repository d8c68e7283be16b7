"""A pytest plugin that shows how many tests are done, with `console_output_style=classic`.

It takes the place of pytest's dots. A terminal shows a bar with the time left; a file gets a line
every 20 seconds. Failures are named at once.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import Any

import pytest
from rich.console import Console

from nas.display import console

LINE_SECONDS = 20.0
"""Time between two lines in a file."""

Status = tuple[str, str, str | tuple[str, dict[str, bool]]]
"""Category of a report, its letter, and its word."""

# pytest reads all that is written to stderr from the start of its session on.
_STDERR = os.fdopen(os.dup(2), "w", buffering=1)


class _ShownTests:
    """Shows the progress of a session of tests on stderr."""

    def __init__(self) -> None:
        self._bars = console.ProgressBars()
        self._done = self._failed = self._total = 0

    def pytest_sessionstart(self) -> None:
        self._bars.__enter__()
        self._bars.begin("tests", "test")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._total = self._total or len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        self._total = len(ids)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self) -> Generator[None, Status, Status]:
        """Write neither a dot nor a letter."""
        category, _, word = yield
        return category, "", word if category in ("failed", "error") else ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed += 1
            self._bars.note(f"FAILED {report.nodeid}")
        if report.when == "teardown":
            self._done += 1
            failed = f"{self._failed} failed" if self._failed else ""
            self._bars.advance(self._done, self._total, failed)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self._bars.__exit__(None)


def pytest_configure(config: pytest.Config) -> None:
    """Show the progress, but not in the processes that run tests for another one."""
    if not hasattr(config, "workerinput"):
        console.err = Console(file=_STDERR)
        console.LINE_SECONDS = LINE_SECONDS
        shown: Any = _ShownTests()
        config.pluginmanager.register(shown, "shown tests")
