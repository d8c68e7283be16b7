"""Jobs whose space is restricted to a trained network of another run: `[[space]] within`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from nas import job as jobs
from nas.data.batches import normalize
from nas.deploy.networks import load_trained
from nas.deploy.requests import RetrainRequest
from nas.deploy.retrain import retrain
from nas.errors import CheckpointError, JobFileError
from nas.job import load_job, supernets
from nas.job.inputs import load_images, load_job_spaces
from nas.opened_run import open_run
from nas.run.progress import SilentProgress
from nas.run.settings import JobSettings
from nas.supernet import checkpoint
from tests.job.runs import OUT, Notes

PRUNED = Path("results/pruned")


def write_pruning(extra: str = "", *, network: str | None = None, space: str = "") -> Path:
    """Write a job that prunes the trained network of the run in the working directory."""
    model = open_run(OUT).models[0]
    path = Path("pruning.toml")
    path.write_text(
        '[data]\nsource = "digits"\nvalidation_fraction = 0.5\n'
        "[training]\nepochs = 1\n[search]\ntrials = 4\nanchors = 0\n"
        "[finish]\nmeasure = 2\nretrain = 1\nexport = []\n"
        f'[[space]]\nname = "{space or model.record.space + ".py"}"\n'
        f'within = "{network or f"{OUT}:{model.record.id}"}"\n{extra}'
    )
    return path


def job_spaces(path: Path):
    """Return the spaces of a job, and its images."""
    settings = load_job(path)
    data = load_images(settings, SilentProgress())
    return load_job_spaces(settings, data), data


@pytest.fixture
def folder(copy_of_fake_folder) -> Path:
    return copy_of_fake_folder


def test_space_is_restricted_and_the_weights_are_those_of_the_run(folder):
    (model,) = open_run(OUT).models
    trained = load_trained(open_run(OUT), model.record.id).judged
    spaces, _ = job_spaces(write_pruning())
    ((name, space),) = spaces.searched.items()
    known = spaces.published[name]
    assert space.largest.digest == space.reference(known.reference.name).digest
    assert space.largest.digest == model.record.digest
    assert known.reference.name == f"mini_{model.record.id}"
    own = trained.architecture.choices
    (whole,) = spaces.named.values()
    parts = {
        each.digest
        for each in whole.enumerate()
        if set(each.choices) <= set(own)
        and all(value <= own[key] for key, value in each.choices.items())
    }
    assert {each.digest for each in space.enumerate()} == parts
    images = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    with torch.no_grad():
        for network in (known.network(), trained.network):
            logits = network(torch.from_numpy(images))
    assert torch.equal(known.network()(torch.from_numpy(images)), logits)


def test_space_without_the_key_stays_whole(folder):
    text = write_pruning().read_text()
    Path("whole.toml").write_text(
        "".join(line for line in text.splitlines(True) if not line.startswith("within"))
    )
    spaces, _ = job_spaces(Path("whole.toml"))
    assert spaces.searched == spaces.named
    assert spaces.published == {}
    assert load_job(Path("whole.toml")).space[0].starts_from_weights is False


def test_supernet_starts_from_the_run_and_says_so(folder):
    (model,) = open_run(OUT).models
    notes = Notes()
    supernets.train_job_supernets(load_job(write_pruning()), PRUNED, progress=notes)
    run = open_run(PRUNED)
    ((name, summary),) = run.record.pretrained.items()
    assert summary.source == f"{OUT}:{model.record.id}"
    assert summary.network == f"mini_{model.record.id}"
    assert summary.data == "digits"
    assert any(f"{name} starts from {summary.summary}" in note for note in notes.notes)
    assert run.record.probes == {}
    weights = run.supernet_folder(name) / "supernet.safetensors"
    _, record = checkpoint.read(weights)
    assert record.published == f"{summary.sha256}-torch"
    before = weights.read_bytes()
    weights.unlink()
    supernets.train_job_supernets(load_job(Path("pruning.toml")), PRUNED)
    assert weights.read_bytes() == before
    # The run's own copy of the space needs no other run.
    (file,) = Path(OUT, "models").glob("*/judged.safetensors")
    tensors, metadata = checkpoint.read(file)
    moved = file.rename("moved.safetensors")
    space = open_run(PRUNED).spaces[name]
    assert space.reference(summary.network).digest == model.record.digest
    with pytest.raises(JobFileError, match=r"no judged\.safetensors"):
        supernets.train_job_supernets(load_job(Path("pruning.toml")), PRUNED)
    # Other weights are another start.
    other = {key: 2 * each for key, each in tensors.items()}
    checkpoint.write(
        file, other, metadata.model_dump(exclude={"schema_version", "sha256"}, exclude_none=True)
    )
    with pytest.raises(CheckpointError, match="published"):
        supernets.train_job_supernets(load_job(Path("pruning.toml")), PRUNED)
    moved.replace(file)
    supernets.train_job_supernets(load_job(Path("pruning.toml")), PRUNED)


def test_path_of_the_run_is_that_of_other_files(folder, monkeypatch):
    text = write_pruning().read_text()
    Path("jobs").mkdir()
    Path("jobs/job.toml").write_text(text.replace(f'"{OUT}:', '"other:'))
    shutil.copytree(OUT, "jobs/other")
    (space,) = load_job(Path("jobs/job.toml")).space
    (model,) = open_run(OUT).models
    assert space.within == f"jobs/other:{model.record.id}"
    assert load_job(Path("jobs/job.toml")) == JobSettings.model_validate(
        load_job(Path("jobs/job.toml")).model_dump()
    )


@pytest.mark.parametrize(
    ("network", "space", "words"),
    [
        ("results/none:k1", "", 'within = "results/none:k1": results/none is not a run'),
        (f"{OUT}:zzz", "", "has no trained networks called 'zzz'"),
        (f"{OUT}:mobilenet_v2_1.0", "", "Trained are: "),
        (None, "mobilenet_tiny", "the stages of mobilenet_tiny are others"),
    ],
)
def test_wrong_networks_are_refused_before_anything_is_written(folder, network, space, words):
    job = load_job(write_pruning(network=network, space=space))
    with pytest.raises(JobFileError) as error:
        jobs.run_job(job, PRUNED)
    assert words in str(error.value)
    assert error.value.exit_status == 2
    assert not PRUNED.exists()


def test_network_that_is_not_trained_is_refused(folder):
    run = open_run(OUT)
    untrained = next(each for each in run.trials["digest"] if each not in run.trained)
    job = load_job(write_pruning(network=f"{OUT}:{untrained}"))
    with pytest.raises(JobFileError, match=r"nas retrain results/mini --pick ID"):
        jobs.run_job(job, PRUNED)


def test_images_may_have_other_sizes_and_classes_but_no_other_channels(folder, photos):
    text = write_pruning().read_text().replace('"digits"', '"photos"')
    Path("pruning.toml").write_text(text)
    with pytest.raises(JobFileError, match=r"1 channel\(s\), and those of this job have 3"):
        job_spaces(Path("pruning.toml"))
    for grey in Path("photos").glob("*/*.png"):
        from PIL import Image

        Image.open(grey).convert("L").save(grey)
    spaces, data = job_spaces(Path("pruning.toml"))
    (space,) = spaces.searched.values()
    assert (space.image_size, space.classes) == (data.image_size, 2)
    (known,) = spaces.published.values()
    assert known.origin.classes != data.classes
    assert known.classes == 10


@pytest.fixture
def photos(folder) -> Path:
    from tests.job.published import write_photos

    write_photos("photos", 24, 16, 16)
    return Path("photos")


@pytest.mark.slow
def test_whole_job_prunes_a_trained_network(folder):
    notes = Notes()
    jobs.run_job(load_job(write_pruning()), PRUNED, progress=notes)
    run = open_run(PRUNED)
    ((name, summary),) = run.record.pretrained.items()
    assert f"start of {name}" in (page := (PRUNED / "report.html").read_text())
    assert summary.sha256 in page
    trials = run.trials
    assert trials["macs"].max() == run.spaces[name].largest.macs
    assert len(run.models) >= 1
    for model in run.models:
        assert model.record.start == "supernet"
    assert run.record.finalists.references in (None, [])
    front = (PRUNED / "front.csv").read_bytes()
    jobs.run_job(load_job(Path("pruning.toml")), PRUNED)
    assert (PRUNED / "front.csv").read_bytes() == front
    data = run.data
    images = normalize(torch.from_numpy(data.search.pixels[:4]), data)
    (first, *_) = run.models
    assert load_trained(run, first.record.id).network(images).shape == (4, 10)


@pytest.mark.slow
def test_network_of_a_pruned_run_is_pruned_again(folder):
    run = open_run(OUT)
    candidates = run.trials[run.trials["space"] == "mobile"].sort_values("macs")
    pick = candidates["digest"].iloc[len(candidates) // 2]
    (record,) = retrain(run, [pick], RetrainRequest(epochs=1), SilentProgress())
    path = write_pruning(network=f"{OUT}:{record.id}", space="mobile.py")
    jobs.run_job(load_job(path), PRUNED)
    pruned = open_run(PRUNED)
    name = f"within_mini_{record.id}"
    assert list(pruned.spaces) == [name]
    assert pruned.record.pretrained[name].summary.endswith(
        f"the space mobile is restricted to the networks that mini_{record.id} contains: "
        f"{pruned.spaces[name].size} of {run.spaces['mobile'].size}"
    )
    other = jobs.retarget(pruned, threads=2, trials=2, retrain=1).run
    assert other.spaces[name].digest == pruned.spaces[name].digest
    assert other.record.pretrained == pruned.record.pretrained
    model = pruned.models[0]
    again, _ = job_spaces(write_pruning(network=f"{PRUNED}:{model.record.id}", space="mobile.py"))
    ((name, space),) = again.searched.items()
    assert name == f"within_pruning_{model.record.id}"
    assert space.largest.digest == model.record.digest
