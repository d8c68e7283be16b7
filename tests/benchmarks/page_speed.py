"""Times a report of many networks: until it can be used, and until a slider has moved.

    python -m tests.benchmarks.page_speed --case large

Needs Chromium, and an idle machine.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page

from tests.report.browser import opened, running_browser
from tests.report.cases import CASES, write_case

REPETITIONS = 5
"""Number of times that the report is opened; medians are printed."""

NEXT_PICTURE = "() => new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))"
"""Script that ends when what has changed is drawn."""


def main() -> None:
    """Parse the command line and print size and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="large")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        report = write_case(arguments.case, Path(folder))
        print(f"size {report.stat().st_size / 1e6:.2f} MB")
        times = [_time(browser, report) for _ in range(REPETITIONS)]
    opening, step = (statistics.median(seconds) for seconds in zip(*times, strict=True))
    print(f"drawn after {opening:.2f} s, a slider has moved after {step:.2f} s")


def _time(browser: Browser, report: Path) -> tuple[float, float]:
    """Return the seconds until a report is drawn, and those of a step of its first slider."""
    start = time.perf_counter()
    with opened(browser, report) as page:
        page.evaluate(NEXT_PICTURE)
        opening = time.perf_counter() - start
        return opening, _step(page)


def _step(page: Page) -> float:
    page.locator("input[type=range]").first.focus()
    start = time.perf_counter()
    page.keyboard.press("ArrowLeft")
    page.evaluate(NEXT_PICTURE)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
