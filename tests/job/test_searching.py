"""`nas search`, and the search of a job: what it honours, leaves behind, and goes on from."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pandas as pd
import psutil
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from nas import job as jobs
from nas.errors import InfeasibleError, RunFolderError, SearchError, TableError
from nas.graph import Graph
from nas.job import JobSettings, load_job, objectives
from nas.job.context import JobContext
from nas.job.folder import claim
from nas.job.progress import SilentProgress
from nas.job.settings import with_search
from nas.latency import LatencyTable
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.records import read_run
from nas.report import candidates, page
from nas.storage_address import redact_address
from tests.commands import document
from tests.mini_job import write_job
from tests.search.postgresql import PASSWORD

PATIENCE_S = 120

SECRET = "open-sesame"

OUT = Path("results/mini")


@pytest.fixture(scope="module")
def searched(finished_job, tmp_path_factory) -> Path:
    """A folder in which the mini job was searched by itself, for two thirds of its trials."""
    folder = tmp_path_factory.mktemp("searched")
    shutil.copytree(finished_job / "latency_tables", folder / "latency_tables")
    settings = with_search(load_job(write_job(folder)), {"trials": 20})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        jobs.search(settings, OUT, command="nas search job.toml --trials 20")
    return folder


@pytest.fixture
def again(searched, tmp_path, monkeypatch) -> Path:
    """The current folder is a copy of that one."""
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(again, job) -> Path:
    """The current folder with a run whose supernets are trained, and that was not searched yet."""
    shutil.move(OUT, "searched")
    with claim(OUT, job, ""):
        shutil.copytree("searched/supernets", OUT / "supernets")
    return again


def opened(settings: JobSettings) -> JobContext:
    return JobContext(settings, SilentProgress())


def networks(settings: JobSettings) -> list[Graph]:
    """All networks of the mini job's spaces."""
    rng = np.random.default_rng(0)
    found = {
        architecture.graph
        for space in opened(settings).spaces.values()
        for architecture in (space.sample(rng, uniform_over="choices") for _ in range(500))
    }
    assert len(found) == 50
    return sorted(found, key=lambda network: network.macs)


def trials_of(run: Path) -> pd.DataFrame:
    return candidates.read(run / "trials.csv")


def complete(run: Path) -> pd.DataFrame:
    rows = trials_of(run)
    return rows[rows["state"] == "complete"]


def front_of(rows: pd.DataFrame, *names: str) -> set[str]:
    """Digests of the rows that no other row is better than, by brute force."""
    points = dict(zip(rows["digest"], rows[list(names)].to_numpy(), strict=True))
    return {
        digest
        for digest, point in points.items()
        if not any((q <= point).all() and (q < point).any() for q in points.values())
    }


def history_of(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / page.HISTORY)


def study_in(run: Path, address: str | None = None) -> optuna.Study:
    """The study of a run, read with Optuna alone."""
    if address is None:
        storage = JournalStorage(JournalFileBackend(str(run / "study.journal")))
    else:
        storage = address.replace("postgresql://", "postgresql+psycopg://")
    return optuna.load_study(study_name=read_run(run).study, storage=storage)


def test_a_search_leaves_its_trials_and_a_predicted_front(searched):
    run = searched / OUT
    rows = trials_of(run)
    assert (rows["state"] == "complete").sum() == 20
    assert rows["measured_us"].isna().all()
    errors = complete(run).assign(error=lambda found: 1 - found["validation_accuracy"])
    assert set(pd.read_csv(run / "front.csv")["digest"]) == front_of(
        errors, "predicted_us", "error"
    )
    text = (run / "report.html").read_text()
    assert "nas search job.toml --trials 20" in text
    assert "all latencies are predictions" in text
    record = read_run(run)
    assert record.search.ended == "all trials done"
    assert "measure the front" not in record.stages


def test_a_search_that_is_done_changes_nothing(again, invoke):
    kept = {name: (OUT / name).read_bytes() for name in ("trials.csv", page.HISTORY)}
    before = read_run(OUT).search
    done = invoke("search", OUT)
    assert done.returncode == 0, done.stderr
    assert "20 architectures" in done.stdout
    assert f"nas run {OUT / 'job.toml'} --out {OUT}" in done.stdout
    assert "search: nothing left to do" in done.stderr
    assert {name: (OUT / name).read_bytes() for name in kept} == kept
    assert read_run(OUT).search == before


def test_a_run_goes_on_with_its_own_spaces(again, invoke):
    for each in Path().glob("*.py"):
        each.unlink()
    done = invoke("search", OUT, "--trials", 21)
    assert done.returncode == 0, done.stderr
    assert len(complete(OUT)) == 21


def test_more_trials_and_then_the_rest_of_the_job_are_the_whole_job(again, finished_job, invoke):
    first = trials_of(OUT)
    found = document(invoke("search", OUT, "--trials", 30, "--json"))
    assert (found["trials"], found["ended"]) == (30, "all trials done")
    more = trials_of(OUT)
    pd.testing.assert_frame_equal(more[: len(first)].drop(columns="id"), first.drop(columns="id"))
    shutil.copy(finished_job / OUT / "measurements.jsonl", OUT)
    done = invoke("run", OUT / "job.toml", "--out", OUT)
    assert done.returncode == 0, done.stderr
    for name in ("trials.csv", "front.csv"):
        expected, rows = (
            pd.read_csv(f / name).drop(columns="seconds") for f in (finished_job / OUT, OUT)
        )
        pd.testing.assert_frame_equal(rows, expected)
    expected, rows = (history_of(f).drop(columns="seconds") for f in (finished_job / OUT, OUT))
    pd.testing.assert_frame_equal(rows, expected)
    # What was measured stays when more is searched.
    measured = trials_of(OUT).dropna(subset=["measured_us"])
    assert document(invoke("search", OUT, "--trials", 32, "--json"))["trials"] == 32
    columns = ["digest", "measured_us", "holdout_accuracy"]
    still = trials_of(OUT).dropna(subset=["measured_us"])
    pd.testing.assert_frame_equal(still[columns], measured[columns])


def test_the_history_of_the_hypervolume_has_a_row_a_trial_whatever_was_lost(again, job):
    whole = history_of(OUT)
    lines = (OUT / page.HISTORY).read_text().splitlines(keepends=True)
    (OUT / page.HISTORY).write_text("".join(lines[:4]))  # as after a kill before it was written
    jobs.search(with_search(job, {"trials": 40}), OUT)
    rows = history_of(OUT)
    assert (
        rows["completed"].tolist() == list(range(1, 41)) == list(range(1, len(complete(OUT)) + 1))
    )
    assert rows["seconds"].is_monotonic_increasing
    pd.testing.assert_frame_equal(rows[:20], whole)
    known = rows["hypervolume"].dropna()
    assert len(known) == 11, "from the end of the startup trials on"
    assert known.is_monotonic_increasing


def test_a_search_ends_when_nothing_gets_better(trained, invoke):
    found = document(invoke("search", "job.toml", "--stall", 3, "--json"))
    assert found["ended"] == "3 trials in a row have not improved the front"
    rows = complete(OUT).assign(error=lambda found: 1 - found["validation_accuracy"])
    assert found["trials"] == len(rows) < 30
    fronts = [
        front_of(rows[:count], "predicted_us", "error") for count in (len(rows) - 3, len(rows))
    ]
    assert fronts[0] == fronts[1]
    assert read_run(OUT).search.ended == found["ended"]
    assert found["ended"] in (OUT / "report.html").read_text()
    repeated = invoke("search", OUT)
    assert found["ended"] in repeated.stdout
    assert f"search: {found['ended']}" in repeated.stderr
    assert len(complete(OUT)) == len(rows)


@pytest.mark.parametrize(("seconds", "most"), [(0.05, 6), (0.35, 1)])
def test_a_search_ends_when_its_minutes_are_over(trained, invoke, monkeypatch, seconds, most):
    evaluate = objectives.evaluate

    def slow(*arguments):
        time.sleep(seconds)
        return evaluate(*arguments)

    monkeypatch.setattr(objectives, "evaluate", slow)
    found = document(invoke("search", "job.toml", "--minutes", 0.005, "--json"))
    assert found["ended"] == read_run(OUT).search.ended == "0.005 minutes are over"
    assert 1 <= found["trials"] == len(complete(OUT)) <= most
    again = document(invoke("search", OUT, "--json"))
    # What passed between trials is not counted again: what is left of the minutes is searched.
    assert found["trials"] <= again["trials"] == len(complete(OUT)) <= most
    if found["trials"] == most:
        assert again == found


LIMITS = {
    "max_latency_ms": "predicted_us",
    "max_macs": "macs",
    "max_params": "params",
    "max_peak_memory_bytes": "peak_memory_bytes",
}


def at_most(limit: str, value: float) -> dict[str, float]:
    """The setting that limits a column to a value."""
    return {limit: value / 1000 if limit == "max_latency_ms" else int(value)}


@pytest.mark.parametrize("limit", LIMITS)
def test_every_trial_meets_a_limit(trained, job, limit):
    name = LIMITS[limit]
    value = trials_of(Path("searched"))[name].quantile(0.5, interpolation="lower")
    jobs.search(with_search(job, {"trials": 8, **at_most(limit, value)}), OUT)
    rows = trials_of(OUT)
    done = rows[rows["state"] == "complete"]
    assert len(done) == 8
    assert done[name].max() <= value
    others = rows[rows["state"] == "infeasible"]
    assert (others[name] > value).all()
    assert others["validation_accuracy"].isna().all()


def test_a_search_that_scored_nothing_says_so(trained, invoke):
    done = invoke("search", "job.toml", "--minutes", "1e-9")
    assert done.returncode == 1
    assert "No architecture was scored, of 0 that were tried (1e-09 minutes are over)." in (
        " ".join(done.stderr.split())
    )


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_that_nothing_meets_is_told_before_anything_is_trained(
    job_folder_with_table, job, limit
):
    name = LIMITS[limit]
    if name == "predicted_us":
        table = opened(job).table
        least = min(table.predict(network).latency_us for network in networks(job))
    else:
        least = min(getattr(network, name) for network in networks(job))
    impossible = with_search(job, at_most(limit, 0.99 * least))
    with pytest.raises(
        InfeasibleError, match=f"Nothing meets the limit {name} .* has {least:.6g} "
    ):
        jobs.search(impossible, OUT)
    with pytest.raises(InfeasibleError, match=f"has {least:.6g} ") as raised:
        jobs.run(impossible, OUT)
    assert raised.value.exit_status == 1
    assert not (OUT / "supernets").exists()
    with claim(OUT, with_search(job, at_most(limit, 1.01 * least)), "") as kept:
        assert "study" not in kept.record, "the limit may still be raised"


def test_limits_on_counts_are_told_before_anything_is_timed(job_folder, invoke):
    text = Path("job.toml").read_text().replace("trials = 30", "trials = 30\nmax_macs = 1")
    Path("job.toml").write_text(text)
    done = invoke("search", "job.toml")
    assert done.returncode == 1
    assert "Nothing meets the limit macs 1: the nearest of" in done.stderr
    (table,) = Path("latency_tables").glob("*.jsonl")
    assert len(LatencyTable.open(table)) == 0


def test_what_is_counted_can_be_minimised_too(trained, job):
    result = jobs.search(with_search(job, {"trials": 8, "also_minimize": ("params",)}), OUT)
    rows = complete(OUT).assign(error=lambda found: 1 - found["validation_accuracy"])
    assert {trial.digest for trial in result.front} == front_of(
        rows, "predicted_us", "params", "error"
    )
    assert len(study_in(OUT).directions) == 3


def another_device(path: Path, lacks=lambda record: False) -> Path:
    """A table of a device on which the kernels of the smallest network are slow."""
    (source,) = Path("latency_tables").glob("*.jsonl")
    known = LatencyTable.open(source)
    mobile = opened(load_job(Path("job.toml"))).spaces["mobile"]
    slow = {kernel.text for kernel in known.predict(mobile.smallest.graph).kernels}
    device = replace(known.device, processor="Cray-1")
    table = LatencyTable.open_or_create(path, SimpleNamespace(fingerprint=device))
    with table.writing():
        for each in known.records():
            if each.kind != "calibration" and not lacks(each):
                factor = 50 if each.name in slow else 1
                timing = Timing(tuple(factor * sample for sample in each.samples_us))
                table.append(
                    Record.from_timing(each.kind, timing, name=each.name, schedule=each.schedule)
                )
    return path


def with_device(path: Path, **limits: float):
    """The mini job with another device."""
    more = "".join(f"{name} = {value}\n" for name, value in limits.items())
    job = Path("job.toml")
    job.write_text(job.read_text() + f'\n[[search.device]]\ntable = "{path}"\n{more}')
    return load_job(job)


def test_another_device_is_one_more_objective_with_its_own_front(trained):
    path = another_device(Path("cray.jsonl"))
    table = LatencyTable.open(path)
    settings = with_device(path)
    result = jobs.search(with_search(settings, {"trials": 12}), OUT)
    rows = pd.DataFrame(
        {
            "digest": trial.digest,
            "error": trial.values["validation_error"],
            "here": trial.values["predicted_us"],
            "there": table.predict(trial.architecture.graph).latency_us,
        }
        for trial in result.trials
    )
    assert len(study_in(OUT).directions) == 3
    assert {trial.digest for trial in result.front} == front_of(rows, "here", "there", "error")
    own = pd.read_csv(OUT / "front-cray.csv").set_index("digest")
    assert set(own.index) == front_of(rows, "there", "error")
    there = rows.set_index("digest")["there"].loc[own.index]
    assert own["predicted_us cray"].tolist() == pytest.approx(there.tolist())
    assert own["validation_accuracy"].is_monotonic_increasing


def test_the_limit_of_another_device_is_met(trained):
    path = another_device(Path("cray.jsonl"))
    with pytest.raises(InfeasibleError, match="Nothing meets the limit predicted_us cray 0.001: "):
        jobs.search(with_device(path, max_latency_ms=1e-6), OUT)


def test_limits_that_nothing_meets_together_are_told(trained, monkeypatch):
    path = another_device(Path("cray.jsonl"))
    known = trials_of(Path("searched"))
    table = LatencyTable.open(path)
    fast = [table.predict(network).latency_us for network in networks(load_job(Path("job.toml")))]
    settings = with_device(path, max_latency_ms=1.01 * min(fast) / 1000)
    settings = with_search(settings, {"max_macs": int(known["macs"].min())})
    with pytest.raises(InfeasibleError, match="Nothing meets all limits together: the nearest of"):
        jobs.search(settings, OUT)
    for module in ("nas.job.searching", "nas.search.study"):
        monkeypatch.setattr(f"{module}.require_feasible", lambda *limits: None)
    with pytest.raises(SearchError, match="No architecture was scored, of .* beyond the limit"):
        jobs.search(settings, OUT)


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        (
            lambda record: record.name.startswith("conv"),
            r"cray.jsonl lacks \d+ of \d+ kernels of mobile, .* Run `nas table build`",
        ),
        (lambda record: record.kind == "dispatch", "does not say what a launch costs. Run `nas"),
        (None, "There is no latency table cray.jsonl"),
    ],
)
def test_the_table_of_another_device_must_be_complete(job_folder_with_table, lacks, words):
    path = Path("cray.jsonl")
    if lacks is not None:
        another_device(path, lacks)
    with pytest.raises(TableError, match=words):
        jobs.search(with_device(path), OUT)
    assert not (OUT / "supernets").exists()


def pids(study: optuna.Study, *states: optuna.trial.TrialState) -> Counter[int]:
    """How many trials each process made."""
    return Counter(
        trial.user_attrs["process"]["pid"]
        for trial in study.get_trials(deepcopy=False, states=states or None)
        if "process" in trial.user_attrs
    )


def when_others_search(monkeypatch, study, then=lambda pid: None) -> list[int]:
    """The first trial of this process waits until another process has made one; who it was."""
    evaluate = objectives.evaluate
    seen: list[int] = []

    def waiting(*arguments):
        end = time.monotonic() + PATIENCE_S
        shared = None if seen else study()
        while not seen:
            assert time.monotonic() < end, "nobody joined the search"
            time.sleep(0.05)
            made = pids(shared, optuna.trial.TrialState.COMPLETE)
            seen.extend(pid for pid in made if pid != os.getpid())
            for pid in seen:
                then(pid)
        return evaluate(*arguments)

    monkeypatch.setattr(objectives, "evaluate", waiting)
    return seen


def assert_nothing_lost_or_repeated(study: optuna.Study, count: int) -> None:
    """Exactly so many trials are complete, of different architectures, and nobody is at one."""
    states = Counter(trial.state.name for trial in study.trials)
    assert states["COMPLETE"] == count
    assert states["RUNNING"] == 0
    done = [t.user_attrs["digest"] for t in study.trials if t.state.name == "COMPLETE"]
    assert len(set(done)) == count
    assert sorted(done) == sorted(complete(OUT)["digest"])
    assert history_of(OUT)["completed"].tolist() == list(range(1, count + 1))


def test_workers_share_the_trials(trained, invoke, monkeypatch):
    others = when_others_search(monkeypatch, lambda: study_in(OUT))
    done = invoke("search", "job.toml", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "ended early" not in done.stderr
    assert_nothing_lost_or_repeated(study_in(OUT), 30)
    assert pids(study_in(OUT)).keys() == {os.getpid(), *others}
    assert "The search is over" in (OUT / "workers.log").read_text()
    assert read_run(OUT).search.workers == 2


def test_a_worker_that_is_killed_loses_nothing(trained, invoke, monkeypatch):
    when_others_search(
        monkeypatch, lambda: study_in(OUT), then=lambda pid: os.kill(pid, signal.SIGKILL)
    )
    done = invoke("search", "job.toml", "--workers", 2, "--trials", 40)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 workers ended early; results/mini/workers.log says why" in done.stderr
    assert_nothing_lost_or_repeated(study_in(OUT), 40)


SLOW = """
import time
from nas.job import objectives

evaluate = objectives.evaluate

def slow(*arguments):
    time.sleep(0.4)
    return evaluate(*arguments)

objectives.evaluate = slow
"""


def test_workers_end_with_the_process_that_started_them(trained, invoke, monkeypatch):
    Path("sitecustomize.py").write_text(SLOW)
    paths = [str(trained), *filter(None, [os.environ.get("PYTHONPATH")])]
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        process = started(
            lambda: (OUT / "study.journal").exists() and len(pids(study_in(OUT))) == 2,
            *("-m", "nas", "search", "job.toml", "--workers", 2),
        )
    (worker,) = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs([worker], timeout=PATIENCE_S)
    assert not alive
    assert 0 < Counter(t.state.name for t in study_in(OUT).trials)["COMPLETE"] < 30
    assert "Traceback" not in (OUT / "workers.log").read_text()
    done = invoke("search", "job.toml")
    assert done.returncode == 0, done.stderr
    assert_nothing_lost_or_repeated(study_in(OUT), 30)


def test_what_no_worker_can_join(again, job, invoke):
    def refused(*arguments: object) -> str:
        done = invoke("search", *arguments, "--worker")
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "is one process's. Start it with --workers 2" in refused(OUT)
    assert "job.toml is not a run" in refused("job.toml")
    assert "--worker and --trials do not go together" in refused(OUT, "--trials", 40)
    assert "--worker and --out do not go together" in refused(OUT, "--out", "there")
    assert "--storage: allowed are" in refused(OUT, "--storage", "journals")
    elsewhere = f"sqlite:///{again}/trials.db"
    assert "trials.db does not hold the search of" in refused(OUT, "--storage", elsewhere)

    (OUT / "study.journal").unlink()
    (OUT / "job.toml").write_text(
        (OUT / "job.toml").read_text().replace("workers = 1", "workers = 2")
    )
    assert "study.journal does not hold the search of" in refused(OUT)
    assert not (OUT / "study.journal").exists(), "a worker makes no journal"

    shared = with_search(job, {"workers": 2})
    with claim(Path("early"), shared, ""):
        assert "has only begun" in refused("early")
    with claim(Path("unsearched"), shared, "") as kept:
        kept.record.spaces = {}
        kept.save()
        assert "The search of unsearched has not begun" in refused("unsearched")


def test_a_worker_needs_the_tables_of_the_run(again, job, invoke):
    with claim(OUT, with_search(job, {"trials": 20, "workers": 2}), ""):
        pass
    (table,) = Path("latency_tables").glob("*.jsonl")
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:9]))
    done = invoke("search", OUT, "--worker")
    assert done.returncode == 1
    assert "lacks" in done.stderr
    shutil.rmtree("latency_tables")
    done = invoke("search", OUT, "--worker")
    assert done.returncode == 1
    assert "There is no latency table" in done.stderr
    assert not Path("latency_tables").exists()
    assert len(study_in(OUT).trials) == 20


def holding(folder: Path, word: str) -> list[Path]:
    """The files in which a word stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if word.encode() in path.read_bytes()]


@pytest.mark.parametrize("way", ["--storage ADDRESS", "--storage=ADDRESS", "job file"])
def test_a_database_that_does_not_answer_is_told_at_once_and_without_its_password(
    job_folder_with_table, invoke, way
):
    address = f"postgresql://nas:{SECRET}@127.0.0.1:9/trials"
    if way == "job file":
        path = Path("job.toml")
        path.write_text(path.read_text().replace("[search]", f'[search]\nstorage = "{address}"'))
        done = invoke("search", "job.toml")
    else:
        done = invoke("search", "job.toml", *way.replace("ADDRESS", address).split())
    assert done.returncode == 1
    assert "postgresql://nas@127.0.0.1:9/trials cannot be opened" in done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert not (OUT / "supernets").exists()
    assert holding(OUT, SECRET) == []
    assert {path.name for path in holding(OUT, "127.0.0.1:9")} == {"run.json", "job.toml"}


@pytest.mark.postgresql
def test_a_worker_joins_through_a_database(trained, invoke, database, monkeypatch):
    command = [sys.executable, "-m", "nas", "search", OUT, "--worker", "--storage", database]
    joined = []

    def study():
        joined.append(subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True))
        return study_in(OUT, database)

    others = when_others_search(monkeypatch, study)
    done = invoke("search", "job.toml", "--trials", 12, "--storage", database)
    assert done.returncode == 0, done.stderr
    said, _ = joined[0].communicate(timeout=PATIENCE_S)
    assert joined[0].returncode == 0, said
    assert "The search is over: 12 trials" in said
    assert others == [joined[0].pid]
    assert_nothing_lost_or_repeated(study_in(OUT, database), 12)
    assert not (OUT / "study.journal").exists()

    quoted = database.split("nas:")[1].split("@")[0]
    for secret in (PASSWORD, quoted):
        assert holding(OUT, secret) == []
        assert secret not in done.stdout + done.stderr + said
    assert redact_address(database) in (OUT / "report.html").read_text()
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert document(invoke("search", OUT, "--trials", 14, "--json"))["trials"] == 14
    assert_nothing_lost_or_repeated(study_in(OUT, database), 14)
    moved = invoke("search", OUT, "--storage", "journal")
    assert moved.returncode == 2
    assert "belongs to a job with another search.storage" in moved.stderr


def test_what_is_searched_for_is_fixed_once_the_search_has_begun(again, invoke):
    done = invoke("search", OUT, "--max-latency-ms", 1, "--sampler", "random")
    assert done.returncode == 2
    assert "belongs to a job with another search.sampler, search.max_latency_ms." in done.stderr


def test_two_searches_in_one_folder(again, job, invoke):
    with claim(OUT, job, ""):
        done = invoke("search", OUT)
        assert done.returncode == 2
        assert "Another process is running a job in results/mini. Wait for it" in done.stderr
        with pytest.raises(RunFolderError, match="Another process"):
            jobs.run(job, OUT)


STUCK = """
import time
from pathlib import Path
from nas.job import objectives

evaluate = objectives.evaluate
calls = []

def stuck(*arguments):
    calls.append(arguments)
    while len(calls) > 2:
        Path("stuck").touch()
        time.sleep(0.01)
    return evaluate(*arguments)

objectives.evaluate = stuck
from nas.cli import main
main()
"""


def started(until, *command: object) -> subprocess.Popen[str]:
    """A process that searches, and has come so far."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=-1, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + PATIENCE_S
    while not until():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.005)
    return process


def test_ctrl_c_ends_after_the_trial_in_flight_and_the_same_command_goes_on(trained, invoke):
    command = ("search", "job.toml", "--trials", 45)
    journal = OUT / "study.journal"
    process = started(
        lambda: journal.exists() and journal.read_bytes().count(b'"digest"') >= 3,
        "-m",
        "nas",
        *command,
    )
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, said
    assert "stopping after the running trial" in said
    assert said.endswith("stopped; the same command continues\n")
    assert "Traceback" not in said
    kept = [trial.user_attrs["digest"] for trial in study_in(OUT).trials]
    assert 3 <= len(kept) < 45
    assert read_run(OUT).search.ended == "interrupted"
    assert len(history_of(OUT)) == len(kept)
    done = invoke(*command)
    assert done.returncode == 0, done.stderr
    assert trials_of(OUT)["digest"].tolist()[: len(kept)] == kept
    assert len(complete(OUT)) == 45
    assert trials_of(Path("searched"))["digest"].tolist() == trials_of(OUT)["digest"].tolist()[:20]


def test_a_second_ctrl_c_ends_at_once_and_leaves_no_workers(trained):
    process = started(Path("stuck").exists, "-c", STUCK, "search", "job.toml", "--workers", 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) == 1
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, said
    assert said.endswith("stopped; the same command continues\n")
    assert not any(worker.is_running() for worker in workers)
    states = Counter(trial.state.name for trial in study_in(OUT).trials)
    assert states["COMPLETE"] >= 2
    assert states["FAIL"] + states["RUNNING"] >= 1
