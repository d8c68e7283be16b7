"""The report in a real browser: its script runs and shows what it should."""

import json

import pytest

from nas.report import page as report_page
from nas.run import candidates
from nas.run.run import open_run
from tests.report.cases import CASES

pytestmark = pytest.mark.browser

LARGE_CASES = ("families", "large")
"""Cases that differ from others in the number of their networks alone."""

MAX_BYTES = 8_000_000
"""Largest report of 10,000 trials."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGE_CASES else ()) for name in CASES],
)
def test_report_opens_without_messages_and_requests(name, show, report_of):
    page = show(report_of(name))
    assert page.title()


@pytest.mark.slow
def test_report_of_many_trials_is_of_moderate_size(report_of):
    assert report_of("large").stat().st_size < MAX_BYTES


def test_names_are_text_and_never_markup(show, report_of):
    page = show(report_of("markup"))
    assert page.locator("body").inner_text().count("<script>alert(1)</script>") > 10
    assert page.locator("img[src=x]").count() == 0


def test_report_shows_measured_members_of_every_family(show, report_of):
    page = show(report_of("example"))
    for family in ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny"):
        rows = page.locator("tr[data-latency]", has_text=family)
        assert rows.count() > 0
        assert rows.filter(has_text="not measured").count() == 0


def test_slider_picks_the_most_accurate_member(finished_job, show):
    results = finished_job / "results" / "mini"
    *_, best = json.loads((results / "front.json").read_text())["front"]
    page = show(results / "report.html")
    text = page.locator("#best").inner_text()
    assert f"Highest accuracy within the budget: {best['id']} ({best['space']})" in text
    assert page.locator("tr.picked").count() == 1


def test_slider_picks_what_select_picks_where_the_slowest_member_is_not_the_best(
    untrained_run, show
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
    opened = open_run(run)
    page = show(report_page.build(opened))
    assert opened.front["id"].iloc[-1] == rows.loc[slowest, "id"] != opened.pick().id
    text = page.locator("#best").inner_text()
    assert f"Highest accuracy within the budget: {opened.pick().id} (" in text
