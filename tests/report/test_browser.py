"""The report in a real browser: its script runs and shows what it should."""

import json
import os
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    # CI installs it and must not miss this test.
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"), reason="chromium is not installed"
    ),
]


@pytest.fixture(scope="module")
def dom(finished_job, tmp_path_factory) -> str:
    """Return the page after its script has run."""
    assert CHROMIUM, "chromium is missing: apt-get install chromium"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--no-first-run"]
    profile = tmp_path_factory.mktemp("profile")
    url = (finished_job / "results" / "mini" / "report.html").as_uri()
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={profile}", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_report_shows_measured_members_of_every_family(dom):
    for family in ("mobile", "shuffle", "squeeze"):
        rows = re.findall(rf"<tr data-latency[^>]*>(?:(?!</tr>).)*</span>{family}<", dom, re.DOTALL)
        assert rows, f"no member of {family}"
        assert not any("not measured" in row for row in rows)


def test_slider_picks_the_most_accurate_member(dom, finished_job):
    front = json.loads((finished_job / "results" / "mini" / "front.json").read_text())["front"]
    shown = re.search(r'<span id="best">([^<]*)</span>', dom)
    assert shown
    assert f"Best network within the budget: {front[-1]['id']} ({front[-1]['space']})" in shown[1]
    picked = re.findall(r'<tr[^>]*class="picked"[^>]*>|<tr class="picked"[^>]*>', dom)
    assert len(picked) == 1
