"""Reports in a real browser: Debian's Chromium, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

WIDE = 1300
"""Width in pixels of a window on a desk."""

PHONE = 390
"""Width in pixels of the window of a phone."""

PAPER = 718
"""Width in pixels of a sheet of A4 between margins of a centimetre."""

TIMEOUT_MS = 60_000
"""Longest time that anything is awaited, beside busy neighbours."""


def find_chromium() -> str | None:
    """Return the path of Chromium; None if it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Yield a headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser,
    report: Path,
    *,
    fragment: str = "",
    width: int = WIDE,
    height: int = 900,
    scheme: str = "light",
    has_scripts: bool = True,
) -> Iterator[Page]:
    """Yield a report as a page, after its script has run.

    Args:
        browser: the browser.
        report: the HTML file.
        fragment: what follows # in the address.
        width: width of the window in pixels.
        height: height of the window in pixels.
        scheme: `light` or `dark`.
        has_scripts: whether the browser runs scripts.

    Raises AssertionError at the end if the page wrote to the console, raised an error, opened a
    dialog, or requested anything but itself.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        java_script_enabled=has_scripts,
        reduced_motion="reduce",
        offline=True,
    )
    address, faults = report.as_uri(), []
    page = context.new_page()
    page.set_default_timeout(TIMEOUT_MS)

    def note_request(request: object) -> None:
        if request.url.partition("#")[0] != address and not request.url.startswith("data:"):
            faults.append(f"request of {request.url}")

    page.on("request", note_request)
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))

    def note_dialog(dialog: object) -> None:
        faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", note_dialog)
    try:
        page.goto(f"{address}#{fragment}" if fragment else address)
        yield page
    except Exception as error:
        error.add_note(f"Faults of the page: {faults}")
        raise
    finally:
        context.close()
    assert not faults, faults
