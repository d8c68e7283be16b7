"""A job whose device is timed by kits: it waits, goes on with results, and ends meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from nas.errors import DeviceError
from nas.job import JobResult, load_job, plan_job, run_job
from nas.latency import LatencyTable
from nas.latency.kit import RESULTS
from nas.latency.worker_process import timers_for
from nas.opened_run import open_run
from nas.report.document import report_document
from nas.run.run import Run
from tests.job.fake_kits import TARGET, FakeKitDevice, run_kit
from tests.job.runs import Notes, edit
from tests.made_once import made_once
from tests.mini_job import write_job

OUT = Path("results/mini")
TABLE_KIT, NETWORKS_KIT = OUT / "kits/table", OUT / "kits/networks"


@pytest.fixture
def job_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of a small job for a device that is timed by kits, in the current folder."""
    monkeypatch.chdir(tmp_path)
    FakeKitDevice.use(monkeypatch)
    return write_small_job(tmp_path)


def write_small_job(folder: Path) -> Path:
    path = write_job(folder, spaces=("mobile",), extra=f'\n[device]\ntarget = "{TARGET}"\n')
    changes = {"trials = 30": "trials = 12", "measure = 10": "measure = 4"}
    return edit(path, {**changes, "retrain = 0": "retrain = 1"})


def run(path: Path) -> JobResult:
    return run_job(load_job(path), OUT, progress=Notes())


def log() -> dict[str, int]:
    """Return the number of timings of each network by its digest."""
    return {digest: len(own.rounds) for digest, own in Run(OUT).latencies.items()}


@pytest.fixture(scope="session")
def predicted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose job has ended with predictions, and has written the networks' kit."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            FakeKitDevice.use(patch)
            path = write_small_job(folder)
            run(path)
            run_kit(TABLE_KIT)
            run(path)

    return made_once(tmp_path_factory, "predicted", make)


@pytest.fixture
def predicted(
    predicted_folder: Path, enter_copy: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """Return a run that waits for timings of networks, in a copy of its folder."""
    FakeKitDevice.use(monkeypatch)
    enter_copy(predicted_folder)
    return Run(OUT)


@pytest.mark.slow
def test_job_waits_for_both_kits_and_ends_with_measured_networks(job_path: Path) -> None:
    waiting = run(job_path)
    assert (waiting.members, waiting.models) == ([], ())
    for words in (str(TABLE_KIT), "./kit", f"copy {RESULTS} back", f"nas run {OUT}/job.toml"):
        assert words in waiting.waiting
    assert waiting.waiting in waiting.report.read_text().replace("&#39;", "'")
    assert not list(OUT.glob("supernets/*"))
    assert not list(Path("latency_tables").glob("*.jsonl"))

    # A start without results says the same, and makes no second kit.
    assert run(job_path).waiting == waiting.waiting
    assert FakeKitDevice.written == [TABLE_KIT]

    # Results of a part of the kernels are taken in; the kit stays, because it times the others.
    run_kit(TABLE_KIT, share=0.5)
    assert run(job_path).waiting == waiting.waiting
    assert FakeKitDevice.written == [TABLE_KIT]

    run_kit(TABLE_KIT)
    predicted = run(job_path)
    assert FakeKitDevice.written == [TABLE_KIT, NETWORKS_KIT]
    assert "predictions until it has timed them" in predicted.waiting
    assert f"nas kit networks {OUT}" in predicted.waiting
    assert len(predicted.models) == 1
    assert {each.measured_us for each in predicted.members} == {None}
    kit = json.loads((NETWORKS_KIT / "kit.json").read_text())["latencies"]
    assert len(kit) == 4
    rows = Run(OUT).trials
    assert set(rows.dropna(subset="holdout_accuracy")["digest"]) == set(kit)
    # A finalist that the kit did not time would not be on the front afterwards.
    assert Run(OUT).trained.keys() <= kit.keys()
    assert Run(OUT).record.device is not None
    assert Run(OUT).record.device.recorded == {"system": "toy"}

    run_kit(NETWORKS_KIT)
    measured = run(job_path)
    assert measured.waiting == ""
    assert set(measured.models) >= set(predicted.models)
    for each in measured.members:
        assert each.measured_us == pytest.approx(kit[each.digest], rel=1e-3)
    assert log() == dict.fromkeys(kit, 4)
    assert FakeKitDevice.written == [TABLE_KIT, NETWORKS_KIT]

    # Another start takes nothing in twice.
    assert run(job_path).members == measured.members
    assert log() == dict.fromkeys(kit, 4)


@pytest.mark.slow
def test_networks_command_takes_in_results_and_renews_the_report(
    predicted: Run, invoke: Callable[..., CompletedProcess[str]]
) -> None:
    trust = next(
        r for r in report_document(predicted).trust.rows if "timed as a whole" in r.finding
    )
    assert trust.remedy == f"nas kit networks {OUT}"
    assert str(NETWORKS_KIT) in trust.details
    waiting = json.loads(invoke("kit", "networks", OUT, "--json").stdout)["waiting"]
    assert f"nas kit networks {OUT}" in waiting
    assert FakeKitDevice.written == []

    run_kit(NETWORKS_KIT, share=0.5)
    assert "Waiting for the device" in invoke("kit", "networks", OUT).stdout
    assert len(log()) == 2
    assert FakeKitDevice.written == []
    run_kit(NETWORKS_KIT)
    assert "are timed" in invoke("kit", "networks", OUT).stdout
    assert len(log()) == 4
    rows = predicted.trials.dropna(subset="measured_us")
    assert set(rows["digest"]) == log().keys()
    assert rows["holdout_accuracy"].notna().all()
    assert not rows["disturbed"].any()
    assert predicted.record.waiting is None
    # A job that goes on agrees with what the command wrote.
    before = predicted.trials[["digest", "measured_us", "measured_low_us", "measured_high_us"]]
    run(Path("job.toml"))
    assert predicted.trials[before.columns].equals(before)


def test_page_of_an_interrupted_job_says_so_when_its_networks_are_timed(
    predicted: Run, invoke: Callable[..., CompletedProcess[str]]
) -> None:
    predicted.record.remaining = ["export"]
    predicted.save()
    run_kit(NETWORKS_KIT)
    assert "are timed" in invoke("kit", "networks", OUT).stdout
    page = (OUT / "report.html").read_text()
    assert "it was interrupted in export" in page
    assert f"nas run {OUT}/job.toml" in page


def test_networks_command_writes_the_kit_anew_that_is_lost(
    predicted: Run, invoke: Callable[..., CompletedProcess[str]]
) -> None:
    before = (NETWORKS_KIT / "kit.json").read_text()
    (NETWORKS_KIT / "kit.json").unlink()
    assert "Waiting for the device" in invoke("kit", "networks", OUT).stdout
    assert (NETWORKS_KIT / "kit.json").read_text() == before


def test_networks_command_refuses_a_device_of_this_machine(
    copy_of_fake_folder: Path, invoke: Callable[..., CompletedProcess[str]]
) -> None:
    done = invoke("kit", "networks", OUT)
    assert done.returncode == 2
    assert "'cpu', which is timed from this machine" in done.stderr


def test_waiting_job_can_be_changed_and_gets_another_kit(job_path: Path) -> None:
    run(job_path)
    run_kit(TABLE_KIT, share=0.5)
    edit(Path("mobile.py"), {"(4, 8), per_stage": "(4, 8, 12), per_stage"})
    assert "Waiting for the device" in run(job_path).waiting
    # Its results are in the table, and beside the old kit.
    (path,) = Path("latency_tables").glob("*.jsonl")
    assert len(LatencyTable.open(path)) > 0
    assert (TABLE_KIT.with_name("table-1") / RESULTS).exists()
    assert not (TABLE_KIT / RESULTS).exists()

    other = edit(job_path, {"kit:phone": "kit:tablet"})
    run_kit(TABLE_KIT)
    notes = Notes()
    run_job(load_job(other), OUT, progress=notes)
    assert any("left out" in each for each in notes.notes)
    assert TABLE_KIT.with_name("table-2").exists()
    assert "tablet" in (TABLE_KIT / "kit.json").read_text()


@pytest.mark.slow
def test_report_and_plan_of_a_waiting_job(
    job_path: Path, invoke: Callable[..., CompletedProcess[str]]
) -> None:
    done = json.loads(invoke("run", job_path, "--json").stdout)
    assert (done["front"], done["models"]) == (0, [])
    progress = report_document(Run(OUT)).progress
    assert progress is not None
    assert (progress.state, progress.stage) == ("waiting", "latency table")
    assert progress.sentences[0] == done["waiting"]
    assert progress.command == f"nas run {OUT}/job.toml --out {OUT}"
    assert json.loads(invoke("search", job_path, "--json").stdout)["waiting"] == done["waiting"]

    plan = plan_job(load_job(edit(job_path, {"[search]": "[search]\nmax_latency_ms = 1e-6"})))
    assert plan.timed_by == "a kit"
    assert plan.kernels == len(json.loads((TABLE_KIT / "kit.json").read_text())["latencies"])
    assert plan.idle_limits == []
    assert "timed on the device by a kit" in invoke("run", job_path, "--plan").stdout


def test_commands_on_a_predicted_run(
    predicted: Run, invoke: Callable[..., CompletedProcess[str]]
) -> None:
    picked = json.loads(invoke("select", OUT, "--json").stdout)
    assert picked["measured_us"] is None
    assert picked["predicted_us"] > 0
    assert invoke("report", OUT).returncode == 0
    assert "predicted" in (OUT / "report.html").read_text()
    assert invoke("report", OUT, OUT, "--out", "both.html").returncode in (0, 2)
    assert invoke("report", OUT, "--figures", "figures").returncode == 0


@pytest.mark.slow
def test_run_is_retargeted_to_a_device_with_a_kit(
    fake_folder: Path,
    enter_copy: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    invoke: Callable[..., CompletedProcess[str]],
) -> None:
    enter_copy(fake_folder)
    FakeKitDevice.use(monkeypatch)
    retarget = ("retarget", OUT, "--target", TARGET, "--out", "results/phone", "--trials", "2")
    assert "Waiting for the device" in invoke(*retarget).stdout
    run_kit(Path("results/phone/kits/table"))
    assert "nas kit networks results/phone" in invoke(*retarget).stdout
    run_kit(Path("results/phone/kits/networks"))
    invoke("kit", "networks", "results/phone")
    phone = open_run("results/phone")
    assert phone.record.source is not None
    assert {each.measured_us is None for each in phone.members} == {False}


def test_a_device_with_a_kit_is_never_timed_from_here(predicted: Run) -> None:
    opened = open_run(OUT)
    kernels = len(opened.table)
    with (
        pytest.raises(DeviceError, match="not connected to this machine"),
        timers_for(opened.runtime),
    ):
        pass
    assert len(LatencyTable.open(opened.table.path)) == kernels
