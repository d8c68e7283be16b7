"""The report in a real browser: its script runs and shows what it should."""

import json
import re
import shutil
from urllib.parse import parse_qsl

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from nas.errors import InfeasibleError
from nas.opened_run import open_run
from nas.report import page as report_page
from nas.run import candidates
from nas.run.run import Run
from nas.run.selection import Limits
from tests.plans.cases import complementary_run
from tests.report.browser import PAPER, PHONE
from tests.report.cases import CASES

pytestmark = pytest.mark.browser

SMALL_CASES = [name for name in CASES if name != "large"]
"""The case that is left out differs from others in the number of its networks alone."""

MAX_BYTES = 8_000_000
"""Largest report of 10,000 trials."""

NETWORKS = "elements => elements.map(element => element.dataset.network)"
"""Script that returns the IDs of networks of elements."""

WIDTH = "document.documentElement.scrollWidth"
"""Script that returns the width of a page in pixels."""

ACTIVE = "document.activeElement"
"""The element with the focus, in scripts."""

INTERACTIVE = ":is(a[href], button, input, select, summary, [tabindex='0']):not(:disabled)"
"""What the Tab key stops at."""


def picked(page: Page) -> str | None:
    """Return the ID of the pick that a page shows; None if it shows none."""
    shown = page.locator("#pick thead code")
    return shown.first.inner_text() if shown.count() else None


def limits_in_address(page: Page) -> dict[str, float]:
    """Return the limits in the address of a page by their names."""
    texts = dict(parse_qsl(page.url.partition("#")[2]))
    return {name: float(text) if "." in text else int(text) for name, text in texts.items()}


def check_widths(page: Page) -> None:
    """Check that nothing on a page is wider than a phone, or than a sheet when it is printed."""
    page.set_viewport_size({"width": PHONE, "height": 844})
    page.wait_for_function(f"{WIDTH} <= {PHONE}")
    page.set_viewport_size({"width": PAPER, "height": 900})
    page.emulate_media(media="print")
    page.wait_for_function(f"{WIDTH} <= {PAPER}")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "large" else ()) for name in CASES],
)
def test_report_opens_without_messages_and_fits_phones_and_paper(name, show, report_of):
    report = report_of(name)
    page = show(report, scheme="dark")
    expect(page.locator("h1")).to_be_visible()
    check_widths(page)
    expect(page.locator("#limits")).to_be_hidden()
    assert report.stat().st_size < MAX_BYTES


def test_names_are_text_and_never_markup(show, report_of):
    page = show(report_of("markup"))
    assert page.locator("body").inner_text().count("<script>alert(1)</script>") > 10
    assert page.locator("img[src=x]").count() == 0


def test_report_of_a_job_shows_measured_members_of_every_family(finished_job, show):
    page = show(finished_job / "results" / "mini" / "report.html")
    for family in ("mobile", "shuffle", "squeeze"):
        rows = page.locator("tr[data-network]", has_text=family)
        assert rows.count() > 0
        assert rows.filter(has_text="not measured").count() == 0


@pytest.mark.slow
def test_page_of_a_running_job_loads_itself_anew_until_that_is_stopped(
    untrained_run, show, monkeypatch
):
    record = json.loads((untrained_run / "run.json").read_text())
    record["remaining"] = ["search", "measure the front"]
    (untrained_run / "run.json").write_text(json.dumps(record))
    monkeypatch.setattr(Run, "is_running", True)
    report = report_page.build(open_run(untrained_run))
    text = report.read_text()
    assert "RELOAD_S = 180;" in text
    report.write_text(text.replace("RELOAD_S = 180;", "RELOAD_S = 2;"))
    page = show(report, fragment="max_latency_ms=0.005")
    expect(page.locator("#progress")).to_contain_text("The job is running")
    limits = limits_in_address(page)
    assert limits == {"max_latency_ms": 0.005}
    page.evaluate("window.isFirst = true")
    page.wait_for_function("window.isFirst === undefined && document.getElementById('reload')")
    assert limits_in_address(page) == limits
    monkeypatch.setattr(Run, "is_running", False)
    report_page.build(open_run(untrained_run))
    expect(page.locator("#progress")).to_contain_text("it was interrupted in search")
    assert page.locator("#reload").count() == 0


@pytest.mark.parametrize(
    "names",
    [["max_latency_ms"], ["max_file_bytes"], ["max_latency_ms", "min_accuracy"]],
)
def test_sliders_pick_what_select_picks_and_say_why(names, show, report_of):
    report = report_of("example")
    run, page, picks = open_run(report.parent), show(report), set()
    for share in (0.9, 0.3, 0.05, 0.01):
        for name in names:
            page.locator(f"#limit-{name}").fill(str(round(1000 * share)))
        limits = limits_in_address(page)
        assert list(limits) == names
        selection = run.selection(Limits(**limits))
        try:
            expected = selection.choose()
        except InfeasibleError:
            expected = None
            expect(page.locator("#picked")).to_contain_text("No network of the front meets")
        assert picked(page) == (expected and expected.name)
        if expected:
            words = page.locator("#picked .difference")
            why = selection.reason(expected).removeprefix("It")
            expect(words).to_contain_text(f"{expected.name}{why}")
            if second := selection.runner_up(expected):
                expect(words).to_contain_text(selection.compare(expected, second).text)
        picks.add(expected and expected.name)
    assert len(picks) > 1


def test_page_picks_a_trained_network_before_the_score_of_few_images(report_of, tmp_path, show):
    folder = shutil.copytree(report_of("example").parent, tmp_path / "run")
    rows = candidates.read(folder / "trials.csv")
    untrained = rows["measured_us"].notna() & rows["trained_accuracy"].isna()
    lucky = rows.loc[untrained, "measured_us"].idxmax()
    rows.loc[lucky, ["validation_accuracy", "corrected_accuracy"]] = 1.0
    rows.loc[lucky, "score_images"] = 20
    rows.loc[lucky, "dominated_by"] = np.nan
    candidates.write(rows, folder / "trials.csv")
    run = open_run(folder)
    page, selection = show(report_page.build(run)), run.selection()
    chosen = selection.choose()
    assert chosen.is_trained
    assert max(selection.options, key=lambda each: each.accuracy).name == rows.loc[lucky, "id"]
    assert picked(page) == chosen.name
    why = selection.reason(chosen).removeprefix("It")
    assert "More is expected of others" in why
    expect(page.locator("#picked .difference")).to_contain_text(f"{chosen.name}{why}")


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
    assert picked(page) == opened.pick().id


def test_latencies_that_are_not_told_apart_are_shown_with_their_limits(untrained_run, show):
    rows = candidates.read(untrained_run / "trials.csv")
    measured_us = rows["measured_us"]
    first, *others = [each.id for each in open_run(untrained_run).members]
    rows["measured_low_us"] = measured_us.where(measured_us.isna(), measured_us.min())
    rows["measured_high_us"] = measured_us.where(measured_us.isna(), measured_us.max())
    rows["disturbed"] = (rows["id"] == first).where(measured_us.notna(), None)
    candidates.write(rows, untrained_run / "trials.csv")
    run = open_run(untrained_run)
    page = show(report_page.build(run))
    front = page.locator("#front")
    expect(front.locator(f"tr[data-network={first}]")).to_contain_text("disturbed: ")
    expect(front.locator(f"tr[data-network={others[0]}] td.strong")).to_contain_text(" to ")
    point = page.locator(f"#front-plot .point.front[data-network={first}]")
    assert f"its timings do not tell it from {', '.join(others)}" in point.get_attribute(
        "aria-label"
    )
    expect(page.locator("#front-plot .bar.range")).to_have_count(len(others) + 1)
    said = page.locator("#picked .difference")
    expect(said).to_contain_text("the timings do not tell their latencies apart")


def test_address_keeps_the_limits_and_the_pick(show, report_of):
    report = report_of("example")
    page = show(report)
    page.locator("#limit-max_latency_ms").fill("500")
    page.get_by_label("parameters, exactly").fill("5000")
    page.keyboard.press("Enter")
    other = page.locator("#front button.pick").first
    other.click()
    fragment = page.url.partition("#")[2]
    again = show(report, fragment=fragment)
    for name in ("latency, ms, exactly", "parameters, exactly"):
        field = again.get_by_label(name)
        expect(field).to_have_value(page.get_by_label(name).input_value())
        assert float(field.input_value()) > 0
    expect(again.locator("#limit-max_latency_ms")).to_have_value("500")
    assert picked(again) == picked(page) == other.inner_text()


def test_pick_beyond_the_limits_is_not_called_the_users(show, report_of):
    page = show(report_of("example"))
    other = page.locator("#front button.pick").last
    other.click()
    expect(page.locator("#pick")).to_contain_text("your pick")
    page.locator("#limit-max_latency_ms").fill("500")
    expect(page.locator("#picked")).to_contain_text(f"{other.inner_text()}, your pick, does not")
    expect(page.locator("#pick")).not_to_contain_text("your pick")
    assert picked(page) != other.inner_text()


def test_command_that_cannot_be_copied_is_selected(show, report_of):
    page = show(report_of("example"))
    refuse = "navigator.clipboard.writeText = () => Promise.reject(new Error('denied'))"
    page.evaluate(f"() => {{ {refuse}; }}")
    page.locator(".command button").click()
    expect(page.locator(".command button")).to_have_text("selected")
    command = page.locator(".command code").inner_text()
    assert page.evaluate("getSelection().toString()") == command


def test_address_of_nonsense_is_no_limit(show, report_of):
    report = report_of("example")
    page = show(report, fragment="max_latency_ms=much&max_params=-1&pick=%3Cb%3E&other=1")
    assert picked(page) == open_run(report.parent).pick().id
    assert page.locator("tr.beyond").count() == 0


def test_limits_make_rows_and_points_beyond_them_pale(show, report_of):
    report = report_of("example")
    page = show(report, fragment="max_latency_ms=0.002")
    front = open_run(report.parent).front
    too_slow = set(front[front["measured_us"] > 2]["id"])
    rows = page.locator("#front tr.beyond").evaluate_all(NETWORKS)
    points = page.locator("#front-plot .point.front.beyond").evaluate_all(NETWORKS)
    assert set(rows) == set(points) == too_slow


def test_cascades_are_points_of_the_front_with_intervals(show, tmp_path):
    run = open_run(complementary_run(tmp_path / "run"))
    curve = run.cascades().curve
    page = show(report_page.build(run))
    better = page.locator("#front-plot .drawing .point.cascade")
    unshown = page.locator("#front-plot .drawing .point.unshown")
    assert better.count() == sum(each.is_better for each in curve) > 0
    assert better.count() + unshown.count() == len(curve)
    label = better.last.get_attribute("aria-label")
    names = [", ".join(each.networks) for each in curve]
    assert any(label.startswith(f"cascade {each}; ") for each in names)
    assert "on average" in label
    expect(page.locator("#front-plot .legend")).to_contain_text("cascade, mean latency")
    expect(page.locator("nav.contents")).to_contain_text("Cascades")
    page.locator("#front-axis").select_option("macs")
    assert page.locator("#front-plot .drawing .point.cascade").count() == 0


def test_tables_are_sorted_by_the_column_whose_head_is_pressed(show, report_of):
    report = report_of("example")
    page = show(report)
    ids = open_run(report.parent).front.sort_values("params", kind="stable")["id"].tolist()
    head = page.locator("#front thead").get_by_role("button", name="parameters")
    shown = page.locator("#front tr[data-network]")
    head.click()
    assert shown.evaluate_all(NETWORKS) == ids
    head.press("Enter")
    assert shown.evaluate_all(NETWORKS)[0] == ids[-1]
    expect(page.locator("#front th[aria-sort]")).to_have_attribute("aria-sort", "descending")


def test_network_that_is_pointed_at_lights_up_everywhere(show, report_of):
    report = report_of("example")
    page = show(report)
    network = open_run(report.parent).models[0].record.id
    page.locator(f"#front tr[data-network='{network}'] td.name").hover()
    lit = page.locator(f".lit[data-network='{network}']")
    assert lit.locator("xpath=self::tr").count() > 1
    expect(page.locator("#front-plot .halo")).to_be_visible()
    expect(page.locator("#agreement-plot .halo")).to_be_visible()
    assert page.locator(".lit").count() == lit.count()
    point = page.locator(f"#front-plot .point.front:not([data-network='{network}'])").first
    point.hover()
    other = point.get_attribute("data-network")
    expect(page.locator(f"#front tr[data-network='{other}']")).to_contain_class("lit")
    expect(page.locator("#tooltip")).to_contain_text(other)


def test_keyboard_reaches_every_point_of_the_front_and_picks_it(show, report_of):
    page = show(report_of("example"))
    points = page.locator("#front-plot .drawing .point")
    assert page.locator("#front-plot .point[tabindex='0']").count() == 1
    page.locator("#front-plot .point[tabindex='0']").focus()
    reached = []
    for _ in range(points.count()):
        reached.append(page.evaluate(f"{ACTIVE}.getAttribute('aria-label')"))
        page.keyboard.press("ArrowRight")
    labels = points.evaluate_all("points => points.map(p => p.getAttribute('aria-label'))")
    assert reached == labels
    page.keyboard.press("Home")
    first = page.evaluate(f"{ACTIVE}.dataset.network")
    assert picked(page) != first
    page.keyboard.press("Enter")
    assert picked(page) == first
    assert page.evaluate(f"{ACTIVE}.dataset.network") == first


@pytest.mark.slow
def test_tab_reaches_everything_that_can_be_operated(show, report_of):
    page = show(report_of("example"))
    everything = page.locator(INTERACTIVE)
    everything.evaluate_all("all => all.forEach((each, index) => { each.dataset.test = index; })")
    visible = [str(index) for index, each in enumerate(everything.all()) if each.is_visible()]
    reached = []
    for _ in visible:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(f"{ACTIVE}.dataset.test"))
    assert reached == visible


def test_ranges_of_choices_leave_the_networks_within_them(show, report_of):
    report = report_of("example")
    page = show(report)
    panel = page.locator("[data-choices]:visible")
    rows = open_run(report.parent).trials
    own = rows[
        (rows["space"] == panel.get_attribute("data-choices")) & (rows["state"] == "complete")
    ]
    widths = own["architecture"].map(lambda text: json.loads(text)["choices"]["stage1.width"])
    options = sorted(set(widths))
    status = panel.get_by_role("status")
    at_least = panel.get_by_role("slider", name="stage1.width, at least")
    at_least.press("ArrowUp")
    expect(at_least).to_have_attribute("aria-valuetext", str(options[1]))
    expect(status).to_contain_text(f"{(widths >= options[1]).sum()} of {len(own)} networks")
    panel.get_by_role("button", name="remove all ranges").click()
    expect(status).to_contain_text(f"{len(own)} of {len(own)} networks")
    axis = panel.locator("g", has=page.get_by_role("slider", name="stage1.width, at least"))
    zone = axis.locator(".zone")
    zone.scroll_into_view_if_needed()
    box = zone.bounding_box()
    # The upper end of the axis is below a handle.
    middle = box["x"] + box["width"] / 2
    page.mouse.move(middle, box["y"] + 0.05 * box["height"])
    page.mouse.down()
    page.mouse.move(middle, box["y"] + 0.1 * box["height"])
    page.mouse.up()
    expect(status).to_contain_text(f"{(widths == options[-1]).sum()} of {len(own)} networks")


def test_network_of_a_table_lights_up_in_the_parallel_coordinates(show, report_of):
    page = show(report_of("example"))
    panel = page.locator("[data-choices]:visible")
    line = panel.locator(".lit-line")
    expect(line).to_have_attribute("d", "")
    panel.locator("table.best tbody tr").first.hover()
    expect(line).to_have_attribute("d", re.compile("^M.+L"))


def test_times_follow_the_pick_and_arrows_reach_every_kernel(finished_job, show):
    page = show(finished_job / "results" / "mini" / "report.html")
    panel = page.locator("#times-panel")
    expect(panel).to_contain_text(f"{picked(page)}: predicted")
    page.locator("#front button.pick").first.click()
    expect(panel).to_contain_text(f"{picked(page)}: predicted")
    kernels = panel.locator(".kernel")
    panel.locator(".kernel[tabindex='0']").focus()
    for position in range(kernels.count()):
        expect(kernels.nth(position)).to_be_focused()
        page.keyboard.press("ArrowDown")
    expect(page.locator("#tooltip")).to_be_visible()


def test_runs_are_compared_network_by_network(show, report_of):
    page = show(report_of("comparison"))
    row = page.locator("#transfer-0 tbody tr").first
    row.hover()
    expect(row).to_have_class("lit")
    point = page.locator(".latency-plot .drawing .point").first
    point.hover()
    expect(page.locator("#front-plots .halo")).to_be_visible()
    expect(page.locator("#tooltip")).to_contain_text(point.get_attribute("data-network"))


@pytest.mark.parametrize("name", ["example", "comparison"])
def test_tables_can_be_read_without_scripts(name, show, report_of):
    page = show(report_of(name), has_scripts=False)
    expect(page.locator("noscript").first).to_be_visible()
    assert page.locator("tr[data-network]").count() > 10


def serious_faults(page: Page) -> list[tuple[str, str, str]]:
    """Return the serious and critical faults that axe-core finds: rules, elements and remedies."""
    return [
        (fault["id"], node["html"][:300], node["failureSummary"])
        for fault in Axe().run(page).response["violations"]
        for node in fault["nodes"][:3]
        if fault["impact"] in ("serious", "critical")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL_CASES, "finished job"])
def test_axe_finds_no_serious_fault(name, show, report_of, finished_job):
    """The finished job has a latency table, and so the times of kernels, which the cases lack."""
    is_case = name in SMALL_CASES
    report = report_of(name) if is_case else finished_job / "results" / "mini" / "report.html"
    page = show(report)
    assert not serious_faults(page)
    page.emulate_media(color_scheme="dark")
    assert not serious_faults(page)
    check_widths(page)
