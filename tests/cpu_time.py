"""A pytest plugin that prints where the time of tests goes: `pytest -p tests.cpu_time`.

CPU time does not depend on what else the machine does. What a fixture of a session costs counts for
the first test of a process that needs it; what importing costs counts for no test.
"""

from __future__ import annotations

import multiprocessing.util
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

SHOWN = 25
"""Number of files and of tests that are listed."""

Costs = dict[str, tuple[float, float, float, int]]
"""Costs by the ID of a test.

They are seconds of the clock, CPU seconds of pytest's process, CPU seconds of the processes that it
waited for, and the number of processes that it started.
"""

_costs: Costs = {}
_started = 0


def _count_process(*_: object) -> None:
    global _started
    _started += 1


def pytest_configure() -> None:
    """Count the processes that are started from now on."""

    def audit(event: str, _: tuple[object, ...]) -> None:
        if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
            _count_process()

    sys.addaudithook(audit)
    spawn: Callable[..., int] = multiprocessing.util.spawnv_passfds  # type: ignore[attr-defined]

    def counted(*arguments: Any) -> int:
        _count_process()
        return spawn(*arguments)

    multiprocessing.util.spawnv_passfds = counted  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure a test with its fixtures."""
    clock, before, started = time.monotonic(), os.times(), _started
    result = yield
    after = os.times()
    _costs[item.nodeid] = (
        time.monotonic() - clock,
        after.user + after.system - before.user - before.system,
        after.children_user + after.children_system - before.children_user - before.children_system,
        _started - started,
    )
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the costs from a process of xdist to the one that prints them."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["cpu_time"] = _costs


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the costs of the tests of a process of xdist."""
    _costs.update(getattr(node, "workeroutput", {}).get("cpu_time", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the costs by folder, and the most expensive files and tests."""
    folders, files = _sums(_folder), _sums(lambda test: test.partition("::")[0])
    for title, rows in (("folder", folders), ("file", files), ("test", _sums(str))):
        header = f"{'clock':>7} {'CPU':>7} {'children':>8} {'processes':>9}  {title}"
        terminalreporter.write_line(f"\n{header}")
        ordered = sorted(rows.items(), key=lambda row: -row[1]["own"] - row[1]["children"])
        for name, row in ordered if title == "folder" else ordered[:SHOWN]:
            figures = f"{row['clock']:7.1f} {row['own']:7.1f} {row['children']:8.1f}"
            terminalreporter.write_line(f"{figures} {row['processes']:9.0f}  {name}")


def _folder(test: str) -> str:
    parts = Path(test.partition("::")[0]).parts
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def _sums(group: Callable[[str], str]) -> Mapping[str, Counter[str]]:
    """Return the sums of the costs of all tests with the same group, and of all tests."""
    sums: dict[str, Counter[str]] = {}
    for test, cost in _costs.items():
        row = dict(zip(("clock", "own", "children", "processes"), cost, strict=True))
        for name in {group(test), "all"}:
            sums.setdefault(name, Counter()).update(row)
    return sums
