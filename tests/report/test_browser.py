"""The report in a real browser: its script runs and shows what it should."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nas.report import page
from nas.run import candidates
from nas.run.run import open_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.browser,
    # CI installs it and must not miss this test.
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("CI"), reason="chromium is not installed"
    ),
]


def dump_dom(report: Path, profile: Path) -> str:
    """Return a page after its script has run."""
    assert CHROMIUM, "chromium is missing: apt-get install chromium"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--disable-component-update", "--disable-sync", "--no-first-run"]
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={profile}", "--dump-dom", report.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def picked(dom: str) -> str:
    """Return the ID of the pick that a page shows."""
    shown = re.search(r'<table id="pick">.*?<code>(\w+)</code>', dom, re.DOTALL)
    assert shown
    return shown[1]


@pytest.fixture(scope="module")
def dom(finished_job, tmp_path_factory) -> str:
    """Return the page of the mini job after its script has run."""
    report = finished_job / "results" / "mini" / "report.html"
    return dump_dom(report, tmp_path_factory.mktemp("profile"))


def test_report_shows_measured_members_of_every_family(dom):
    for family in ("mobile", "shuffle", "squeeze"):
        rows = re.findall(rf"<tr data-network[^>]*>(?:(?!</tr>).)*</span>{family}<", dom, re.DOTALL)
        assert rows, f"no member of {family}"
        assert not any("not measured" in row for row in rows)


def test_slider_picks_the_most_accurate_member(dom, finished_job):
    run = open_run(finished_job / "results" / "mini")
    assert picked(dom) == run.pick().id
    assert len(re.findall(r'<tr[^>]*class="picked"[^>]*>', dom)) >= 1


def test_slider_picks_what_select_picks_where_the_slowest_member_is_not_the_best(
    untrained_run, tmp_path
):
    """With a third objective, a slow network can be on the front for its few parameters."""
    run = untrained_run
    record = json.loads((run / "run.json").read_text())
    record["job"]["search"]["also_minimize"] = ["macs"]
    (run / "run.json").write_text(json.dumps(record))
    rows = candidates.read(run / "trials.csv")
    slowest = rows["measured_us"].idxmax()
    rows.loc[slowest, "macs"] = 1
    candidates.write(rows, run / "trials.csv")
    report = page.build(open_run(run))
    opened = open_run(run)
    assert opened.front["id"].iloc[-1] == rows.loc[slowest, "id"] != opened.pick().id
    assert picked(dump_dom(report, tmp_path / "profile")) == opened.pick().id
