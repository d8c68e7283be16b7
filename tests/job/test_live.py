"""The report while a job runs: when it is written, what it says, and that it changes nothing."""

import errno
import os
import signal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from nas import job as jobs
from nas.errors import SearchError
from nas.job import live, load_job
from nas.job.folder import claim
from nas.job.live import INTERVAL_S, LiveReport
from nas.job.planning import planned_stages
from nas.job.settings import with_options
from nas.opened_run import open_run
from nas.report import page
from nas.report.progress import progress_section
from nas.run.run import Run
from nas.space import load_space
from tests.job.runs import OUT, Notes, edit, read_trials, start_process
from tests.latency.fake_runtime import use_fake_device
from tests.mini_job import write_job

SLOW_SEARCH = """
import time
from nas.job import live, objectives
from tests.faults import main

evaluate = objectives.evaluate_in_rounds

def slowly(*arguments, **options):
    time.sleep(0.2)
    return evaluate(*arguments, **options)

objectives.evaluate_in_rounds = slowly
live.INTERVAL_S, live.MAX_SHARE, live.MAX_STAGE_SHARE = 0.0, float("inf"), float("inf")
main()
"""
"""Runs `nas` on the fake device, with a report after each trial."""

STAGES = ["prepare", "latency table", "supernet mobile", "search", "measure the front"]


TRIALS = 6


def write_small_job(folder: Path) -> Path:
    path = write_job(folder, spaces=["mobile"])
    return edit(path, {"trials = 30": f"trials = {TRIALS}", "epochs = 2": "epochs = 1"})


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory) -> Path:
    """Return the run folder of the small job, which wrote no report meanwhile."""
    folder = tmp_path_factory.mktemp("unwatched")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_fake_device(patch)
        jobs.run_job(load_job(write_small_job(folder)), OUT)
    return folder / OUT


@pytest.fixture
def small_job(job_folder, fake_device):
    """Return the settings of the mini job with one space, on the fake device."""
    return load_job(write_small_job(job_folder))


@pytest.fixture
def eager(monkeypatch):
    """Write the report after each stage and each trial."""
    monkeypatch.setattr(live, "INTERVAL_S", 0.0)
    monkeypatch.setattr(live, "MAX_SHARE", float("inf"))
    monkeypatch.setattr(live, "MAX_STAGE_SHARE", float("inf"))


@pytest.fixture
def sections(monkeypatch):
    """Return a list of what each report said of the progress of its run, with its trials."""
    written = []
    build = page.build

    def record(run):
        written.append((progress_section(run), len(run.trials_so_far)))
        return build(run)

    monkeypatch.setattr(page, "build", record)
    return written


def assert_same_results(first: Path, second: Path) -> None:
    for name in ("trials.csv", "front.csv", "hypervolume.csv"):
        frames = [pd.read_csv(run / name).drop(columns="seconds") for run in (first, second)]
        pd.testing.assert_frame_equal(*frames)


def test_planned_stages_are_those_of_a_whole_job(small_job):
    spaces = {"mobile": load_space("mobile.py")}
    assert planned_stages(small_job, spaces) == STAGES
    assert planned_stages(small_job, spaces, search_only=True) == STAGES[:-1]
    longer = with_options(
        small_job,
        search={"anchors": 4},
        finish={"retrain": 2},
        device={"dtype": ["float32", "int8"]},
    )
    both = {"a": load_space("mobile.py"), "mobilenet": load_space("mobilenet")}
    stages = planned_stages(longer, both)
    assert stages == [
        "prepare", "latency table", "supernet a", "supernet mobilenet", "anchors",
        "losses of int8", "search", "measure the front", "train the finalists", "export",
        "published networks",
    ]  # fmt: skip
    none = with_options(longer, finish={"references": []})
    assert planned_stages(none, both) == stages[:-1], "mobilenet has some"


@pytest.mark.slow
def test_report_follows_the_job_and_changes_nothing(unwatched, small_job, eager, sections):
    notes = Notes()
    jobs.run_job(small_job, OUT, progress=notes)
    assert_same_results(unwatched, OUT)
    *unfinished, (last, _) = sections
    assert last is None
    assert {section.state for section, _ in unfinished} == {"running"}
    assert [s.stage for s, _ in sections[:3]] == STAGES[1:4]
    searching = [(s, trials) for s, trials in unfinished if s.stage == "search" and s.scored]
    assert [trials for _, trials in searching] == sorted(trials for _, trials in searching)
    assert [section.scored for section, _ in searching] == list(range(1, TRIALS + 1))
    assert all(section.remaining == ("search", "measure the front") for section, _ in searching)
    assert not any("could not be written" in text for text in notes.notes)


def test_report_that_cannot_be_written_is_a_message(small_job, eager, monkeypatch):
    build = page.build

    def refuse(run):
        if run.record.remaining:
            raise OSError(errno.ENOSPC, "No space left on device", "report.html")
        return build(run)

    monkeypatch.setattr(page, "build", refuse)
    notes = Notes()
    jobs.run_job(small_job, OUT, progress=notes)
    (text,) = [text for text in notes.notes if "report" in text]
    assert text.startswith("the report of the run so far could not be written: OSError")
    assert "No space left on device" in text
    assert (OUT / "report.html").is_file()


def test_reports_take_a_hundredth_of_the_search(small_job, monkeypatch):
    clock = SimpleNamespace(now=0.0, build_s=4.0)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: clock.now))
    writes = []

    def build(run):
        clock.now += clock.build_s
        writes.append(clock.now)

    monkeypatch.setattr(page, "build", build)
    with claim(OUT, small_job) as run:
        report = LiveReport(run, run.progress)
        for _ in range(2000):
            clock.now += 1.0
            report.during_search(lambda: None)
    assert writes[0] == INTERVAL_S + clock.build_s
    pauses = [later - before for before, later in pairwise(writes)]
    assert pauses == pytest.approx([404.0] * len(pauses), abs=1.0)
    assert len(pauses) >= 3


@pytest.mark.parametrize(
    "error",
    [SearchError("The search went wrong."), ZeroDivisionError(), KeyboardInterrupt(), SystemExit()],
)
def test_failed_job_leaves_a_report_that_says_where_it_ended(
    small_job, sections, monkeypatch, error
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("nas.job.searching.search_spaces", fail)
    with pytest.raises(type(error)):
        jobs.run_job(small_job, OUT)
    section, _ = sections[-1]
    assert (section.state, section.stage) == ("interrupted", "search")
    assert section.command == f"nas run {OUT}/job.toml --out {OUT}"
    assert "it was interrupted in search" in section.sentences[0]
    assert progress_section(open_run(OUT)).state == "interrupted"


def test_searched_run_has_ended(small_job):
    jobs.search_job(small_job, OUT)
    assert progress_section(open_run(OUT)) is None


def test_a_run_is_running_while_a_job_works_on_it(small_job):
    with claim(OUT, small_job):
        assert open_run(OUT).is_running
    assert not open_run(OUT).is_running
    assert not Run(Path("elsewhere")).is_running
    assert not Path("elsewhere").exists()


def test_report_of_a_begun_job_is_no_reason_to_fix_its_job(small_job):
    with claim(OUT, small_job):
        (OUT / "report.html").write_text("begun")
    with claim(OUT, small_job) as run:
        assert not run.has_begun


@pytest.mark.slow
def test_killed_search_leaves_its_trials_and_continues_as_if_nothing_had_been(
    unwatched, small_job, eager, invoke
):
    process = start_process(
        lambda: (OUT / "trials.csv").exists(), "-c", SLOW_SEARCH, "run", "job.toml", "--out", OUT
    )
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    section = progress_section(open_run(OUT))
    assert (section.state, section.stage) == ("interrupted", "search")
    scored = read_trials(OUT)["digest"].tolist()
    assert invoke("report", OUT).returncode == 0
    assert "it was interrupted in search" in (OUT / "report.html").read_text()
    jobs.run_job(small_job, OUT)
    assert_same_results(unwatched, OUT)
    assert read_trials(OUT)["digest"].tolist()[: len(scored)] == scored
