"""The study of a job: what it trains, what a kill leaves, and several processes."""

import os
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch

from nas import job as jobs
from nas.errors import RequestError, SpaceError, TrainingError
from nas.job import load_job
from nas.job import study as study_module
from nas.job.searching import trials_storage
from nas.job.study import join_study, plan_study, run_study, study_name
from nas.opened_run import open_run
from nas.run.progress import SilentProgress
from nas.run.study import read_study
from nas.search.storage import Storage
from nas.search.tasks import TaskLog
from nas.supernet import standalone
from nas.supernet.distillation import Teacher
from nas.supernet.standalone import NetworkTrainer, train_network
from nas.supernet.training import CHECKPOINT_FILE
from nas.torch_network import to_torch
from tests.commands import document
from tests.deploy.test_references import use_fake_device
from tests.job.runs import OUT, Notes, start_process
from tests.job.test_references import JOB as REFERENCES_JOB
from tests.job.test_references import SPACE
from tests.latency.fake_runtime import latency_us
from tests.mini_job import write_job

pytestmark = pytest.mark.slow

torch.set_num_threads(1)

JOB = REFERENCES_JOB.replace("retrain = 1", "retrain = 0")
JOB += """
[study]
finalists = 2
random = 1
epochs = 1
seeds = 2
"""

RUN = Path("results/job")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return a folder with a job that has ended, before its study."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_fake_device(patch)
        Path("small.py").write_text(SPACE)
        Path("job.toml").write_text(JOB)
        jobs.run_job(load_job(Path("job.toml")), RUN)
    return folder


@pytest.fixture
def folder(finished, tmp_path, monkeypatch) -> Path:
    """Make a copy of the folder the working directory."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    use_fake_device(monkeypatch)
    return tmp_path


def study(old="", new="", progress=None):
    """Run the study, with a part of its job replaced."""
    Path("job.toml").write_text(JOB.replace(old, new))
    return run_study(load_job(Path("job.toml")), RUN, command="nas study", progress=progress)


def results(record):
    """Return the accuracies of all trainings, without what differs between two studies."""
    return {
        (each.network, each.seed): (each.holdout_accuracy, each.test_accuracy)
        for each in record.trainings
    }


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, int]]:
    """Return a list of the trainings that begin in this process: digest and seed."""
    begun: list[tuple[str, int]] = []

    def train(architecture, *arguments, seed, **options):
        begun.append((architecture.digest, seed))
        return train_network(architecture, *arguments, seed=seed, **options)

    monkeypatch.setattr(study_module, "train_network", train)
    return begun


def test_found_published_and_random_networks_are_timed_and_trained_alike(folder, trained):
    notes = Notes()
    record = study(progress=notes)
    run = open_run(RUN)
    kinds = [each.kind for each in record.networks]
    assert kinds.count("found") == kinds.count("random") == 2
    assert 1 <= kinds.count("published") <= 3
    assert record.is_complete
    assert len(trained) == len(set(trained)) == 2 * len(record.networks)
    assert [seed for _, seed in trained] == sorted(seed for _, seed in trained)
    space = run.space("small")
    for each in record.networks:
        architecture = space.from_json(each.architecture.model_dump())
        assert architecture.digest == each.digest
        assert len(record.accuracies(each)) == 2
        expected_us = 1.1 * sum(map(latency_us, run.runtime.kernels(architecture.graph)))
        assert each.latency_us == pytest.approx(expected_us, rel=1e-3)
    assert {each.digest for each in record.of_kind("found")} <= set(run.front["digest"])
    assert record.teacher == "largest of small"
    assert (record.recipe["epochs"], record.recipe["weight_decay"]) == (1, 5e-4)
    assert record == read_study(RUN)
    assert sum("on the test images" in text for text in notes.notes) == len(trained)
    assert not (RUN / "study").exists()
    assert not list(RUN.glob("models/*"))
    assert {"study.csv", "study.md", "study.svg", "study.png"} <= {p.name for p in RUN.iterdir()}
    assert run.record.stages["study"].seconds > 0
    page = (RUN / "report.html").read_text()
    assert record.statements
    assert all(escape(statement) in page for statement in record.statements)
    assert b64encode((RUN / "study.svg").read_bytes()).decode() in page
    assert f"once for each of {len(trained)} trainings" in page


def test_training_is_one_from_newly_drawn_weights(folder, monkeypatch):
    drawn = {}

    class Trainer(NetworkTrainer):
        def __init__(self, graph, data, settings, seed, start=None, teacher=None):
            super().__init__(graph, data, settings, seed, start, teacher)
            drawn[graph.digest, seed] = {
                name: tensor.clone() for name, tensor in self.network.state_dict().items()
            }
            assert start is None
            assert teacher is not None

    monkeypatch.setattr(standalone, "NetworkTrainer", Trainer)
    record = study()
    run = open_run(RUN)
    for each in record.of_kind("found"):
        graph = run.architecture(each.digest).graph
        for seed in (0, 1):
            expected = to_torch(graph, seed=seed).state_dict()
            own = drawn[each.digest, seed]
            assert all(torch.equal(own[name], expected[name]) for name in expected)


def test_teacher_answers_once_for_all_networks_of_a_seed(folder, monkeypatch):
    answered = []

    def compute(teacher, images):
        answered.append(images)
        return original(teacher, images)

    original = Teacher._compute_logits
    monkeypatch.setattr(Teacher, "_compute_logits", compute)
    record = study()
    assert len(record.networks) > 2
    assert len(answered) == 2 * 12  # A training has 12 steps.


def test_same_command_again_trains_and_times_nothing(folder, trained, monkeypatch):
    first = study()
    trained.clear()
    monkeypatch.setattr(study_module, "time_networks", None)
    before = report()
    assert study() == first
    assert trained == []
    assert report() == before


def report() -> dict[str, bytes]:
    """Return the contents of the files of the report."""
    names = ("study.csv", "study.json", "study.md", "study.svg", "study.png")
    return {name: (RUN / name).read_bytes() for name in names}


@pytest.mark.slow
def test_more_seeds_and_networks_train_what_is_missing(folder, trained):
    first = study("seeds = 2", "seeds = 1")
    count = len(trained)
    more = study("finalists = 2", "finalists = 3")
    assert results(first).items() <= results(more).items()
    assert len(trained) == 2 * len(more.networks) > count
    assert len(set(trained)) == len(trained)


@pytest.mark.slow
def test_other_epochs_are_other_trainings(folder):
    first = study("seeds = 2", "seeds = 1")
    other = study("epochs = 1\nseeds = 2", "epochs = 2\nseeds = 1")
    assert {each.digest for each in other.networks} == {each.digest for each in first.networks}
    assert results(first) != results(other)
    assert other.recipe["epochs"] == 2


@pytest.fixture(scope="module")
def undisturbed(finished, tmp_path_factory):
    """Return the record of a study that nothing interrupted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_fake_device(patch)
        return study()


@pytest.mark.parametrize("stop", [4, 15, 27])
def test_study_that_is_stopped_within_a_training_ends_like_an_undisturbed_one(
    folder, undisturbed, monkeypatch, stop
):
    """A training has 12 steps; the third one is stopped at its fourth step, for example."""
    steps, resumed = [], []

    def train(architecture, data, folder, settings, *, progress, **options):
        def count(state):
            steps.append(state.step)
            if len(steps) == stop:
                raise KeyboardInterrupt
            if len(steps) == stop + 1:
                resumed.append(state.step)
            progress(state)

        # A real training writes a checkpoint every 30 s.
        often = type(settings)(**{**settings.__dict__, "checkpoint_seconds": 0.0})
        return train_network(architecture, data, folder, often, progress=count, **options)

    monkeypatch.setattr(study_module, "train_network", train)
    with pytest.raises(KeyboardInterrupt):
        study()
    interrupted = read_study(RUN)
    assert len(interrupted.trainings) == (stop - 1) // 12
    assert list(RUN.glob(f"study/*/{CHECKPOINT_FILE}"))
    record = study()
    assert resumed == [(stop - 1) % 12 + 2 if stop % 12 else 1]
    assert results(record) == results(undisturbed)
    assert [each.digest for each in record.networks] == [e.digest for e in undisturbed.networks]


def test_report_of_a_stopped_study_has_what_other_processes_trained_meanwhile(folder, monkeypatch):
    def train(architecture, *arguments, **options):
        run = open_run(RUN)
        storage = Storage(trials_storage(run, run.settings.search))
        tasks = [f"{each.digest}:0" for each in read_study(RUN).networks]
        with TaskLog(storage, study_name(run), tasks, "holdout_accuracy") as log:
            assert log.claim() == tasks[1]
            log.finish({"holdout_accuracy": 0.5, "test_accuracy": 0.25, "seconds": 1.0}, 0.5)
        raise KeyboardInterrupt

    monkeypatch.setattr(study_module, "train_network", train)
    with pytest.raises(KeyboardInterrupt):
        study("seeds = 2", "seeds = 1")
    (training,) = read_study(RUN).trainings
    assert training.test_accuracy == 0.25
    assert "0.25" in (RUN / "study.csv").read_text()


def test_training_that_diverges_is_reported_and_not_repeated(folder, monkeypatch):
    def diverge(architecture, *arguments, seed, **options):
        if seed == 1:
            raise TrainingError("it diverged.")
        return train_network(architecture, *arguments, seed=seed, **options)

    monkeypatch.setattr(study_module, "train_network", diverge)
    notes = Notes()
    record = study(progress=notes)
    assert record.is_complete
    failed = [each for each in record.trainings if each.error]
    assert len(failed) == len(record.networks)
    assert {each.error for each in failed} == {"it diverged."}
    assert any("seed 1: not trained: it diverged." in text for text in notes.notes)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    use_fake_device(monkeypatch)
    assert study().trainings == record.trainings


@pytest.fixture
def untrained(folder, monkeypatch) -> None:
    """Let studies choose and time networks, but train none."""
    monkeypatch.setattr(study_module._Trainer, "work", lambda *arguments: 0)


@pytest.mark.usefixtures("untrained")
def test_random_networks_have_the_latency_of_their_found_one():
    record = study("random = 1", "random = 3")
    found = {each.name: each for each in record.of_kind("found")}
    run, rng = open_run(RUN), np.random.default_rng(0)
    space = run.space("small")
    everything = {a.digest: a for a in (space.sample(rng) for _ in range(3000))}
    chosen = {each.digest for each in record.networks}
    for name, own in found.items():
        drawn = [each for each in record.of_kind("random") if each.found == name]
        assert len(drawn) == 3
        distances = [abs(each.predicted_us / own.predicted_us - 1) for each in drawn]
        others = [
            abs(run.table.predict(a, 1).latency_us / own.predicted_us - 1)
            for digest, a in everything.items()
            if digest not in chosen
        ]
        # None is farther than 3%, unless the space has no nearer one.
        assert max(distances) <= max(0.03, min(others))


@pytest.mark.usefixtures("untrained")
def test_named_references_may_be_of_other_spaces_and_equal_ones_are_left_out():
    names = '["squeezenet_1.1", "middle", "middle_again"]'
    record = study("[study]", f"[study]\nreferences = {names}")
    published = {each.name for each in record.of_kind("published")}
    assert published | record.left_out.keys() == {"squeezenet_1.1", "middle", "middle_again"}
    assert "squeezenet_1.1" in published
    assert "equals it" in record.left_out["middle_again"]
    assert not record.is_complete
    with pytest.raises(SpaceError, match="nonsense"):
        study("[study]", '[study]\nreferences = ["nonsense"]')


def test_networks_of_two_dtypes_are_refused(folder):
    job = load_job(Path("job.toml"))
    device = job.device.model_copy(update={"dtype": ("float32", "int8")})
    with pytest.raises(RequestError, match="one dtype"):
        run_study(job.model_copy(update={"device": device}), Path("other"))
    assert not Path("other").exists()


def test_plan_counts_trainings_and_writes_nothing(folder):
    before = sorted(folder.rglob("*"))
    plan = plan_study(load_job(Path("job.toml")))
    assert plan.networks == {"found": 2, "published": 4, "random": 2}
    assert (plan.trainings, plan.epochs) == (16, 1)
    assert plan.seconds > 0
    assert sorted(folder.rglob("*")) == before


def test_networks_may_be_trained_in_a_copy_of_the_run_folder(folder, undisturbed, monkeypatch):
    """As on a machine that reaches no database and lacks the device: its journal comes back."""

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study_module, "train_network", stop)
        with pytest.raises(KeyboardInterrupt):
            study()
    copy = folder / "copy"
    shutil.copytree(RUN, copy)
    with monkeypatch.context() as patch:
        patch.delattr("nas.latency.open_runtime")
        assert join_study(open_run(copy), None, SilentProgress()) == 2 * len(undisturbed.networks)
    shutil.copy(open_run(copy).journal, open_run(RUN).journal)
    monkeypatch.setattr(study_module, "train_network", stop)
    assert results(study()) == results(undisturbed)


def test_worker_needs_a_study_that_has_begun(folder):
    with pytest.raises(RequestError, match="does not hold the study"):
        join_study(open_run(RUN), None, SilentProgress())


@pytest.mark.slow
def test_command_shows_the_study_and_writes_its_report_anew(folder, invoke):
    shown = document(invoke("study", "job.toml", "--out", RUN, "--json"))
    assert shown["schema"] == 1
    (RUN / "study.md").unlink()
    assert document(invoke("study", RUN, "--report", "--json")) == shown
    assert (RUN / "study.md").exists()
    done = invoke("study", RUN, "--worker", "--report")
    assert done.returncode == 2
    assert "Give one of them" in done.stderr
    assert document(invoke("study", RUN, "--worker", "--json"))["trainings"] == 0


STUDY = """
[study]
finalists = 2
epochs = 3
seeds = 2
workers = 2
"""


def pids(run: Path) -> list[int]:
    """Return the process of each training that a study has ended, in order."""
    opened = open_run(run)
    storage = Storage(opened.journal)
    if study_name(opened) not in storage.get_study_names():
        return []
    trials = storage.get_trials(storage.get_study_id(study_name(opened)))
    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    return [trial.user_attrs["process"]["pid"] for trial in done]


@pytest.mark.slow
def test_two_processes_share_a_study(copy_of_finished_job, monkeypatch, invoke):
    monkeypatch.chdir(copy_of_finished_job)
    write_job(Path(), extra=STUDY)
    done = invoke("study", "job.toml")
    assert done.returncode == 0, done.stderr
    assert "ended early" not in done.stderr
    record = read_study(OUT)
    assert record.is_complete
    assert len(record.trainings) == 8
    assert len(pids(OUT)) == 8
    assert os.getpid() in pids(OUT)
    log = (OUT / "workers.log").read_text()
    assert "The study is over" in log


@pytest.mark.long
def test_killed_study_continues_with_its_trainings(copy_of_finished_job, monkeypatch, invoke):
    monkeypatch.chdir(copy_of_finished_job)
    write_job(Path(), extra=STUDY.replace("workers = 2", "workers = 1"))
    process = start_process(
        lambda: (OUT / "study.json").exists() and len(pids(OUT)) >= 2,
        *("-m", "nas", "study", "job.toml"),
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    ended = pids(OUT)
    done = invoke("study", "job.toml")
    assert done.returncode == 0, done.stderr
    assert read_study(OUT).is_complete
    assert len(pids(OUT)) == 8
    assert pids(OUT)[: len(ended)] == ended
    worker = subprocess.run(
        [sys.executable, "-m", "nas", "study", str(OUT), "--worker"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert worker.returncode == 0, worker.stderr
    assert "The study is over: 0 trainings" in worker.stdout
