"""Published networks that start from their published weights, and their latencies."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas import job as jobs
from nas.deploy.networks import load_trained
from nas.deploy.references import published_network, summary_of
from nas.errors import CheckpointError, NasError, RequestError
from nas.job import load_job
from nas.opened_run import open_run
from nas.pretrained import read_weights
from nas.run.progress import SilentProgress
from nas.run.run import Run
from nas.space import load_definition
from nas.supernet import recipe
from nas.supernet.recipe import FINE_TUNING_RATE
from nas.torch_network import Network
from tests.job.published import SPACE
from tests.job.runs import Notes
from tests.latency.fake_runtime import FakeRuntime, device, latency_us, use_fake_device
from tests.made_once import made_once

torch.set_num_threads(1)

JOB = """
[data]
source = "digits"
validation_fraction = 0.5

[training]
epochs = 1
device = "cpu"

[[space]]
name = "small.py"
pretrained = { file = "weights.pth", conventions = "torch", source = "a friend" }

[search]
trials = 8

[finish]
measure = 3
retrain = 0
export = []
"""

RUN = Path("results/job")
NAME = "small_1.0"


@pytest.fixture
def _device(fake_device, monkeypatch) -> None:
    monkeypatch.setattr(recipe, "MANY_IMAGES", 100)  # All widths are searched.


@pytest.fixture
def finished(tmp_path_factory, _device) -> Path:
    """Return a folder with a finished job, and two files of published weights."""

    def make(folder: Path) -> None:
        Path("small.py").write_text(SPACE)
        Path("job.toml").write_text(JOB)
        network = load_definition("small.py").adapt(image_size=32).reference(NAME)
        for seed, file in enumerate(("weights.pth", "others.pth")):
            generator = torch.Generator().manual_seed(seed)
            torch.save(Network(network.graph, generator).state_dict(), file)
        jobs.run_job(load_job(Path("job.toml")), RUN)

    return made_once(tmp_path_factory, "job_with_published_weights", make)


@pytest.fixture
def run(finished, tmp_path, monkeypatch) -> Run:
    """Make a copy of the finished folder the working directory, and return its run."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return open_run(RUN)


@pytest.fixture
def run_with_rival(tmp_path_factory, finished, tmp_path, monkeypatch) -> Run:
    """Do as `run`, with a trained finalist and a published network that was trained likewise."""

    def make(folder: Path) -> None:
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        run = open_run(RUN)
        run.retrain(run.front["id"].iloc[-1], **published(), epochs=1)

    folder = made_once(tmp_path_factory, "run_with_a_rival", make)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return open_run(RUN)


def published(file="weights.pth", **options):
    """Arguments that train the published network from a file."""
    return {"references": [NAME], "pretrained": file, "conventions": "torch", **options}


def test_reference_from_its_file_and_a_finalist_differ_in_their_start_alone(run_with_rival):
    run = run_with_rival
    own, rival = sorted(run.trained.values(), key=lambda record: record.id == NAME)
    assert (own.start, own.published) == ("supernet", None)
    assert rival.start == "published"
    assert (rival.epochs, rival.seed, rival.teacher) == (own.epochs, own.seed, own.teacher)
    assert rival.training == own.training, "the run's supernet starts from published weights, too"
    assert rival.training["learning_rate"] == pytest.approx(0.1 * FINE_TUNING_RATE)
    assert rival.published == run.record.pretrained["small"]
    assert rival.published.summary.endswith(
        "source a friend, license unknown, trained on unknown data"
    )


def test_reference_without_a_file_starts_from_the_supernet_or_from_scratch(run):
    (record,) = run.retrain(references=["small_0.5"], epochs=1)
    assert (record.start, record.published) == ("supernet", None)
    assert record.training["learning_rate"] == pytest.approx(0.1 * FINE_TUNING_RATE)
    (record,) = run.retrain(references=[NAME], epochs=1, from_scratch=True)
    assert record.start == "scratch"
    assert record.training["learning_rate"] == pytest.approx(0.1)


def test_reference_is_timed_once_and_stands_in_the_report(run_with_rival, monkeypatch):
    run = run_with_rival
    network = published_network(run, NAME)
    log = (RUN / "measurements.jsonl").read_text()
    own = [line for line in map(json.loads, log.splitlines()) if line["digest"] == network.digest]
    expected = 1.1 * sum(map(latency_us, run.runtime.kernels(network.graph)))
    assert run.measured_us[network.digest] == pytest.approx(expected, rel=1e-3)
    assert own
    assert all(line["measured_us"] == pytest.approx(expected, rel=1e-3) for line in own)
    model = next(each for each in run.models if each.record.id == NAME)
    assert model.latency_us == run.measured_us[network.digest]
    text = (RUN / "report.html").read_text()
    assert '<td class="name">1 epoch from published weights</td>' in text
    assert "published network</td>" in text
    assert f"<dt>start of {NAME}</dt><dd>{NAME} from weights.pth, SHA-256 " in text
    use_fake_device(monkeypatch, lambda **_: pytest.fail("it was timed again"))
    run.retrain(**published())
    assert (RUN / "measurements.jsonl").read_text() == log


def test_continued_job_keeps_the_latency_of_a_reference(run_with_rival):
    before, models = run_with_rival.measured_us, run_with_rival.models
    jobs.run_job(load_job(Path("job.toml")), RUN)
    assert open_run(RUN).measured_us == before
    assert [each.record for each in open_run(RUN).models] == [each.record for each in models]


def test_reference_is_trained_where_it_cannot_be_timed(run, monkeypatch):
    use_fake_device(monkeypatch, lambda **_: FakeRuntime(device(processor="another")))
    notes = Notes()
    run.retrain(references=["small_0.5"], epochs=1, progress=notes)
    assert "small_0.5: not timed. " in notes.notes[-1]
    assert "measured on another device" in notes.notes[-1]
    assert [model.latency_us for model in run.models] == [None]
    assert "not timed" in (RUN / "report.html").read_text()


class StopError(Exception):
    """Ends a training in its middle."""


class Stop(SilentProgress):
    def advance(self, done, total, text=""):
        if done == 3:
            raise StopError


@pytest.mark.slow
def test_interrupted_training_ends_as_an_undisturbed_one(run, tmp_path, monkeypatch):
    shutil.copytree(RUN, "other")
    (expected,) = run.retrain(**published(), epochs=1)
    settings = Run.recipe
    monkeypatch.setattr(Run, "recipe", lambda *a: replace(settings(*a), checkpoint_seconds=0))
    other = open_run("other")
    with pytest.raises(NasError, match="StopError"):
        other.retrain(**published(), epochs=1, progress=Stop())
    assert not (tmp_path / "other/models" / NAME / "trained.json").exists()
    with pytest.raises(CheckpointError, match="start"):
        other.retrain(**published("others.pth"), epochs=1)
    (resumed,) = other.retrain(**published(), epochs=1)
    times = {"seconds": True, "refit": {"seconds"}}
    assert resumed.model_dump(exclude=times) == expected.model_dump(exclude=times)
    ours, theirs = (load_trained(each, NAME).network.state_dict() for each in (run, other))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.slow
def test_network_that_was_trained_in_another_way_is_refused(run_with_rival):
    run = run_with_rival
    with pytest.raises(RequestError, match=r"start = published, not scratch.* Move the folder"):
        run.retrain(references=[NAME], from_scratch=True)
    with pytest.raises(RequestError, match=r"sha256 of its weights = .*Move the folder"):
        run.retrain(**published("others.pth"))
    with pytest.raises(RequestError, match=r"conventions of its weights = torch, not tensorflow"):
        run.retrain(**published(conventions="tensorflow"))
    shutil.rmtree(RUN / "models" / NAME)
    run.retrain(references=[NAME], from_scratch=True, epochs=1)
    with pytest.raises(RequestError, match=r"start = scratch, not published.* Move the folder"):
        run.retrain(**published())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (published(references=[]), "one published network, and 0 are asked for.* --reference"),
        (published(references=[NAME, "small_0.5"]), "and 2 are asked for.* --reference"),
        (published(from_scratch=True), "Leave --from-scratch or --pretrained out"),
        ({"references": [NAME], "conventions": "torch"}, "with --pretrained"),
        (published(references=["small_0.5"]), "is not of small_0.5, but of small_1.0"),
        (published(references=["mobilenet_v2_1.0"]), "is not of mobilenet_v2_1.0, but of small"),
        (published(conventions="keras"), "'torch', 'torchvision_v3' or 'tensorflow'"),
        (published(conventions=None), "State its conventions"),
        (published("missing.pth"), "missing.pth in .* cannot be read"),
    ],
)
def test_wrong_request_trains_nothing(run, options, words):
    pick = run.front["id"].iloc[-1]
    with pytest.raises(RequestError, match=words) as caught:
        run.retrain(pick, **options)
    assert caught.value.exit_status == 2
    assert not (RUN / "models").exists()


def test_provenance_of_another_file_than_that_of_the_job_is_unknown(run):
    others = read_weights("others.pth", conventions="torch", spaces=list(run.spaces.values()))
    summary = summary_of(run, others).summary
    assert "source unknown, license unknown, trained on unknown data" in summary


@pytest.mark.slow
def test_card_names_what_a_reference_started_from(run_with_rival, in_process):
    run = run_with_rival
    (folder,) = run.export(NAME, formats=["onnx"])
    weights = run.record.pretrained["small"]
    assert folder.card.recipe["start"] == "published"
    assert folder.card.recipe["started_from"] == weights.summary
    assert folder.card.latencies_us["measured"] == run.measured_us[folder.card.digest]
    assert weights.sha256 in (folder.path / "card.md").read_text()


def test_command_names_the_start(run_with_rival, invoke):
    done = invoke(
        *("retrain", RUN, "--reference", NAME, "--pretrained", "weights.pth"),
        *("--conventions", "torch", "--epochs", 1),
    )
    assert done.returncode == 0, done.stderr
    assert "published" in done.stdout
    wrong = invoke("retrain", RUN, "--pretrained", "weights.pth")
    assert wrong.returncode == 2
    assert "--reference" in wrong.stderr
