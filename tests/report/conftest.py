"""Fixtures for reports in a browser."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.made_once import made_once
from tests.report.browser import TIMEOUT_MS, find_chromium, opened, running_browser
from tests.report.cases import report_path, write_case

expect.set_options(timeout=TIMEOUT_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return a headless Chromium; skip the test if it is not installed."""
    if find_chromium() is None:
        if os.environ.get("NAS_REQUIRE_CHROMIUM") == "1":
            pytest.fail("Chromium is not installed, and NAS_REQUIRE_CHROMIUM=1 asks for it")
        pytest.skip("Chromium is not installed")
    with running_browser() as browser:
        yield browser


@pytest.fixture
def show(browser) -> Iterator[Callable[..., Page]]:
    """Return a function that opens a report, see `tests.report.browser.opened`.

    The test fails if any page complains or requests anything.
    """
    with ExitStack() as pages:

        def show_report(report: Path, **settings: object) -> Page:
            page: AbstractContextManager[Page] = opened(browser, report, **settings)
            return pages.enter_context(page)

        yield show_report


@pytest.fixture(scope="session")
def report_of(tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that returns the report of a case, see `tests.report.cases`.

    A test that changes files needs a copy of its folder.
    """

    def report(name: str) -> Path:
        folder = made_once(tmp_path_factory, f"case-{name}", partial(write_case, name))
        return report_path(name, folder)

    return report
