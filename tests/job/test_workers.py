"""Several processes that take part in one search, through a journal or a database."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import psutil
import pytest

from nas.files.storage_address import redact_address
from nas.job import objectives
from nas.job.folder import claim
from nas.job.settings import with_options
from nas.run.record import read_run
from tests.commands import document
from tests.job.runs import (
    MAX_WAIT_S,
    OUT,
    assert_nothing_lost_or_repeated,
    edit,
    load_study,
    read_completed_trials,
    read_trials,
    start_process,
    trials_by_process,
)
from tests.search.postgresql import PASSWORD

SECRET = "open-sesame"


def wait_for_other_process(monkeypatch, study, then=lambda pid: None) -> list[int]:
    """Let the first trial of this process wait until another process has completed a trial.

    Args:
        monkeypatch: the fixture.
        study: function that loads the study.
        then: function that is called with the ID of the other process.

    Returns:
        a list that will hold the ID of the other process.
    """
    evaluate = objectives.evaluate_in_rounds
    others: list[int] = []

    def wait_and_evaluate(*arguments, **options):
        end = time.monotonic() + MAX_WAIT_S
        shared = None if others else study()
        while not others:
            assert time.monotonic() < end, "no process joined the search"
            time.sleep(0.05)
            pids = trials_by_process(shared, optuna.trial.TrialState.COMPLETE)
            others.extend(pid for pid in pids if pid != os.getpid())
            for pid in others:
                then(pid)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(objectives, "evaluate_in_rounds", wait_and_evaluate)
    return others


@pytest.mark.slow
def test_workers_share_the_trials(folder_with_supernets, invoke, monkeypatch):
    others = wait_for_other_process(monkeypatch, lambda: load_study(OUT))
    done = invoke("search", "job.toml", "--workers", 2, "--trials", 12)
    assert done.returncode == 0, done.stderr
    assert "ended early" not in done.stderr
    assert_nothing_lost_or_repeated(load_study(OUT), 12)
    assert trials_by_process(load_study(OUT)).keys() == {os.getpid(), *others}
    assert "The search is over" in (OUT / "workers.log").read_text()
    assert read_run(OUT).search.workers == 2


@pytest.mark.slow
def test_killed_worker_loses_no_trial(folder_with_supernets, invoke, monkeypatch):
    wait_for_other_process(
        monkeypatch, lambda: load_study(OUT), then=lambda pid: os.kill(pid, signal.SIGKILL)
    )
    done = invoke("search", "job.toml", "--workers", 2, "--trials", 12)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 workers ended early; results/mini/workers.log says why" in done.stderr
    assert_nothing_lost_or_repeated(load_study(OUT), 12)


SLOW_EVALUATION = f"""
import os
import time
from pathlib import Path
from nas.job import objectives

evaluate = objectives.evaluate_in_rounds

def slow(*arguments, **options):
    Path(f"searches-{{os.getpid()}}").touch()
    end = time.monotonic() + {MAX_WAIT_S}
    while len(list(Path().glob("searches-*"))) < 2:
        assert time.monotonic() < end, "no process joined the search"
        time.sleep(0.05)
    time.sleep(1)
    return evaluate(*arguments, **options)

objectives.evaluate_in_rounds = slow
"""


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(folder_with_supernets, invoke, monkeypatch):
    def both_processes_search() -> bool:
        if len(list(Path().glob("searches-*"))) < 2:
            return False
        return bool(trials_by_process(load_study(OUT), optuna.trial.TrialState.COMPLETE))

    edit(Path("job.toml"), {"trials = 30": "trials = 8"})
    Path("sitecustomize.py").write_text(SLOW_EVALUATION)
    paths = [str(folder_with_supernets), *filter(None, [os.environ.get("PYTHONPATH")])]
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        process = start_process(
            both_processes_search, "-m", "nas", "search", "job.toml", "--workers", 2
        )
    (worker,) = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs([worker], timeout=MAX_WAIT_S)
    assert not alive
    assert 0 < Counter(t.state.name for t in load_study(OUT).trials)["COMPLETE"] < 8
    assert "Traceback" not in (OUT / "workers.log").read_text()
    done = invoke("search", "job.toml")
    assert done.returncode == 0, done.stderr
    assert_nothing_lost_or_repeated(load_study(OUT), 8)


def test_worker_refuses_runs_that_it_cannot_join(copy_of_searched_folder, job, invoke):
    def refused(*arguments: object) -> str:
        done = invoke("search", *arguments, "--worker")
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "runs in one process. Run it with two processes or more" in refused(OUT)
    assert "job.toml is not a run" in refused("job.toml")
    assert "--worker and --trials do not go together" in refused(OUT, "--trials", 40)
    assert "--worker and --out do not go together" in refused(OUT, "--out", "there")
    assert "--storage: allowed are" in refused(OUT, "--storage", "journals")
    elsewhere = f"sqlite:///{copy_of_searched_folder}/trials.db"
    assert "trials.db does not hold the search of" in refused(OUT, "--storage", elsewhere)

    (OUT / "study.journal").unlink()
    (OUT / "run.json").write_text(
        (OUT / "run.json").read_text().replace('"workers": 1', '"workers": 2')
    )
    assert "study.journal does not hold the search of" in refused(OUT)
    assert not (OUT / "study.journal").exists(), "a worker creates no journal"

    shared = with_options(job, search={"workers": 2})
    with claim(Path("early"), shared):
        assert "The search of early has not begun" in refused("early")
    with claim(Path("unsearched"), shared) as run:
        run.record.spaces = {}
        run.save()
        assert "The search of unsearched has not begun" in refused("unsearched")


def test_worker_needs_the_latency_table_of_the_run(copy_of_searched_folder, job, invoke):
    with claim(OUT, with_options(job, search={"trials": 20, "workers": 2})):
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
    assert len(load_study(OUT).trials) == 20


def files_with(folder: Path, word: str) -> list[Path]:
    """Return the files that contain a word."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if word.encode() in path.read_bytes()]


@pytest.mark.parametrize("source", ["option", "job file"])
def test_unreachable_database_is_refused_without_showing_its_password(
    job_folder_with_table, invoke, source
):
    address = f"postgresql://nas:{SECRET}@127.0.0.1:9/trials"
    if source == "job file":
        path = Path("job.toml")
        path.write_text(path.read_text().replace("[search]", f'[search]\nstorage = "{address}"'))
        done = invoke("search", "job.toml")
    else:
        done = invoke("search", "job.toml", f"--storage={address}")
    assert done.returncode == 1
    assert "postgresql://nas@127.0.0.1:9/trials cannot be opened" in done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert not (OUT / "supernets").exists()
    assert files_with(OUT, SECRET) == []
    written = {path.name for path in files_with(OUT, "127.0.0.1:9")}
    assert written - {"report.html"} == {"run.json", "job.toml"}


@pytest.mark.slow
@pytest.mark.postgresql
def test_worker_joins_through_a_database(folder_with_supernets, invoke, database, monkeypatch):
    command = [sys.executable, "-m", "nas", "search", OUT, "--worker", "--storage", database]
    joined = []

    def study():
        joined.append(subprocess.Popen(command, stdout=-1, stderr=subprocess.STDOUT, text=True))
        return load_study(OUT, database)

    others = wait_for_other_process(monkeypatch, study)
    done = invoke("search", "job.toml", "--trials", 12, "--storage", database)
    assert done.returncode == 0, done.stderr
    output, _ = joined[0].communicate(timeout=MAX_WAIT_S)
    assert joined[0].returncode == 0, output
    assert "The search is over: 12 trials" in output
    assert others == [joined[0].pid]
    assert_nothing_lost_or_repeated(load_study(OUT, database), 12)
    assert not (OUT / "study.journal").exists()

    quoted = database.split("nas:")[1].split("@")[0]
    for secret in (PASSWORD, quoted):
        assert files_with(OUT, secret) == []
        assert secret not in done.stdout + done.stderr + output
    assert redact_address(database) in (OUT / "report.html").read_text()
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert document(invoke("search", OUT, "--trials", 14, "--json"))["trials"] == 14
    assert_nothing_lost_or_repeated(load_study(OUT, database), 14)
    limit_ms = float(read_trials(OUT)["predicted_us"].median()) / 1000
    limited = ("search", OUT, "--max-latency-ms", limit_ms, "--workers", 2)
    assert document(invoke(*limited, "--json"))["trials"] == 14
    assert read_run(OUT).study.endswith(".2")
    assert_nothing_lost_or_repeated(load_study(OUT, database), 14)
    assert read_completed_trials(OUT)["predicted_us"].max() <= 1000 * limit_ms
    moved = invoke("search", OUT, "--storage", "journal")
    assert moved.returncode == 2
    assert "[search] storage was 'postgresql" in moved.stderr
