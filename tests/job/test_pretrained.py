"""Jobs whose supernets start from published weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas import job as jobs
from nas.deploy import retrain
from nas.errors import RunFolderError, WeightsError
from nas.files import jsonl
from nas.job import load_job, supernets
from nas.job.folder import claim
from nas.job.stages import open_data
from nas.opened_run import open_run
from nas.pretrained import read_weights
from nas.run.record import read_run
from nas.run.settings import PretrainedSettings
from nas.run.trained import PretrainedSummary
from nas.space import load_definition
from nas.supernet import checkpoint, recipe
from nas.supernet.evaluation import evaluate_network
from nas.supernet.ground_truth import STANDALONE_FILE
from nas.supernet.pretrained import probed_network, published_state
from nas.supernet.recipe import FINE_TUNING_RATE, FULL_RATE_IMAGES
from nas.supernet.records import STANDALONE
from nas.supernet.standalone import train_standalone
from nas.supernet.weights import Supernet
from tests.job.published import JOB, NAME, RUN, weights_of, write_files

WEIGHTS = RUN / "supernets" / NAME / "supernet.safetensors"


@pytest.fixture
def job(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_files()


@pytest.fixture(scope="module")
def trained_folder(tmp_path_factory) -> Path:
    """Return a folder with the job, whose run has a trained supernet."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        supernets.train_job_supernets(load_job(write_files()), RUN)
    return folder


@pytest.fixture
def trained(trained_folder, enter_copy) -> Path:
    """Make a copy of this folder the working directory, and return its job file."""
    enter_copy(trained_folder)
    return Path("job.toml")


def test_supernet_starts_from_the_file_at_a_lower_rate(trained):
    summary = read_run(RUN).pretrained[NAME]
    assert summary.network == "small_1.0"
    assert summary.file == "weights.pth"
    assert summary.conventions == "torch"
    assert ", source a friend, license unknown, trained on toys; the space small" in summary.summary
    _, record = checkpoint.read(WEIGHTS)
    assert record.published == f"{summary.sha256}-torch"
    images = len(open_run(RUN).data.train)
    rate = 0.1 * FINE_TUNING_RATE * images / FULL_RATE_IMAGES
    assert record.training["learning_rate"] == pytest.approx(rate)
    assert record.training["progressive_resizing"] == 0
    weights = WEIGHTS.read_bytes()
    WEIGHTS.unlink()
    supernets.train_job_supernets(load_job(trained), RUN)
    assert WEIGHTS.read_bytes() == weights
    torch.save({}, "weights.pth")
    with pytest.raises(WeightsError):
        supernets.train_job_supernets(load_job(trained), RUN)


def test_path_stands_for_a_table_with_the_file_alone(job):
    known = load_job(job)
    job.write_text(JOB.partition("pretrained")[0] + 'pretrained = "weights.pth"\n')
    (space,) = load_job(job).space
    assert space.pretrained == PretrainedSettings(file="weights.pth")
    job.write_text(known.to_toml())
    assert load_job(job) == known


@pytest.mark.parametrize(
    ("stated", "by_file", "words"),
    [
        (None, None, "license unknown,"),
        (None, "Apache-2.0", "license Apache-2.0,"),
        ("MIT", None, "license MIT,"),
        ("MIT", "MIT", "license MIT,"),
        ("MIT", "Apache-2.0", "license MIT as stated, Apache-2.0 by the file,"),
    ],
)
def test_license_is_that_of_the_user_and_of_the_file(job, stated, by_file, words):
    spaces = [load_definition("small.py")]
    weights = read_weights("weights.pth", conventions="torch", spaces=spaces)
    pretrained = PretrainedSettings(file="weights.pth", license=stated)
    summary = PretrainedSummary.of(replace(weights, license=by_file), pretrained).summary
    assert words in summary
    assert summary.endswith("trained on unknown data")


def test_statements_can_change_after_the_training(trained):
    trained.write_text(JOB.replace("a friend", "https://example.org").replace("toys", "photos"))
    supernets.train_job_supernets(load_job(trained), RUN)
    assert read_run(RUN).pretrained[NAME].source == "https://example.org"
    Path("other.pth").write_bytes(weights_of("small_1.0"))
    trained.write_text(JOB.replace('"weights.pth"', '"other.pth"'))
    with pytest.raises(RunFolderError, match=r"\[space.pretrained\] file was 'weights.pth' and"):
        supernets.train_job_supernets(load_job(trained), RUN)


def test_file_that_holds_no_weights_is_refused_before_anything_is_written(job):
    Path("weights.pth").write_text("<html>404</html>")
    for start in (jobs.run_job, jobs.search_job, supernets.train_job_supernets):
        with pytest.raises(WeightsError, match="web page"):
            start(load_job(job), RUN)
    assert not RUN.exists()


@pytest.mark.parametrize("has_few", [True, False])
def test_space_is_restricted_to_the_published_network(job, has_few, monkeypatch):
    if not has_few:
        monkeypatch.setattr(recipe, "MANY_IMAGES", 10)
    Path("weights.pth").write_bytes(weights_of("small_0.5"))
    supernets.train_job_supernets(load_job(job), RUN)
    run = open_run(RUN)
    name = "at_widths_of_small_0.5" if has_few else "within_small_0.5"
    assert list(run.record.spaces) == list(run.record.pretrained) == list(run.spaces) == [name]
    space = run.spaces[name]
    assert space.digest == run.record.spaces[name]
    # Depth 1 or 2, both kernels in each block, both or one of the body's widths, one of the stem's.
    assert space.size == (1 if has_few else 2) * (2 + 4)
    summary = run.record.pretrained[name].summary
    contained = "contains, at its widths: 6" if has_few else "contains: 12"
    assert summary.endswith(
        f"the space small is restricted to the networks that small_0.5 {contained} of 24"
    )
    weights = Supernet.load(run.supernet_folder(name), space).state_dict()
    assert weights["stem.weight"].shape[0] == 4
    # The run's own copy of the space is the same space, without the user's file.
    Path("small.py").unlink()
    with claim(RUN, run.record.job) as again:
        open_data(again, own_spaces=True)
    assert again.spaces[name].digest == space.digest
    assert again.record.pretrained[name].summary == summary


@pytest.mark.parametrize("is_better", [True, False])
@pytest.mark.parametrize("is_whole", [True, False])
def test_published_network_is_a_probe_if_search_images_say_so(
    trained, is_better, is_whole, monkeypatch
):
    """A part of the published network is trained, whatever a probe on it would reach."""
    with claim(RUN, load_job(trained)) as run:
        open_data(run)
        (architecture,) = run.published_networks.values()
        weights = run.published[NAME]
        if not is_whole:
            architecture = architecture.space.smallest
        state = probed_network(
            architecture, weights, run.data, seed=0, device=torch.device("cpu")
        ).tensors()
        slot = architecture.graph.ops[-1].slot_name

        def accuracy(network, data, part="search"):
            assert (data, part) == (run.data, "search")
            is_probe = torch.equal(network.tensors()[f"{slot}.weight"], state[f"{slot}.weight"])
            return 0.5 + 0.1 * (is_probe == is_better)

        monkeypatch.setattr(retrain, "evaluate_network", accuracy)
        setup = retrain.Retraining(run, epochs=1, probed=run.published)
        record = retrain.train_model(setup, "own", architecture)
    assert record.is_probe == (is_better and is_whole)
    trained, _ = checkpoint.read(RUN / "models" / "own" / "weights.safetensors")
    conv = next(name for name in state if name.endswith("depthwise.weight"))
    assert torch.equal(trained[conv], state[conv]) == record.is_probe
    assert record.recipe.text == "1 epoch from the supernet"


def test_networks_run_at_shares_of_the_image_size(trained):
    job = trained
    plain = open_run(RUN).spaces[NAME]
    job.write_text(JOB + "resolutions = [1, 0.75]\n")
    with pytest.raises(RunFolderError, match=r"\[\[space\]\] resolutions was not set and is now"):
        supernets.train_job_supernets(load_job(job), RUN)
    other = RUN.with_name("other")
    supernets.train_job_supernets(load_job(job), other)
    run = open_run(other)
    space = run.spaces[NAME]
    assert space.parameters["resolution"] == (6, 8)
    assert space.digest == run.record.spaces[NAME] != plain.digest
    assert space.size == 2 * plain.size
    assert space.reference("small_1.0").graph.input_shape[1] == 8
    assert [each.image_size for each in run.record.probes[NAME].sizes] == [8]
    assert run.record.pretrained[NAME].summary.endswith("at its widths: 12 of 48")
    copy = (other / "spaces" / f"{NAME}.py").read_text()
    supernets.train_job_supernets(load_job(job), other)
    # A later start, and a retargeted run, read the run's own copy.
    Path("small.py").unlink()
    for has_begun in (True, False):
        with claim(other, load_job(other / "job.toml")) as again:
            again.has_begun = has_begun
            open_data(again, own_spaces=True)
        assert again.spaces[NAME].digest == space.digest
        assert (other / "spaces" / f"{NAME}.py").read_text() == copy


def test_supernet_is_ranked_against_networks_from_the_same_weights(trained):
    run = open_run(RUN)
    supernets.rank_supernets(run, nets=2, repeated=0, epochs=1)
    published = read_weights("weights.pth", conventions="torch", spaces=[run.spaces[NAME]])
    for row in jsonl.read(RUN / STANDALONE_FILE, STANDALONE):
        assert row.training["published"] == published.digest
        assert row.training["learning_rate"] == pytest.approx(0.04 * len(run.data.train) / 500)
        network = run.spaces[NAME].from_json(row.architecture.model_dump())
        start = published_state(
            network, published, run.data, seed=row.seed, device=torch.device("cpu")
        )
        recipe = run.settings.training.fine_tuned(run.recipe(1), len(run.data.train))
        trained = train_standalone(network.graph, run.data, recipe, seed=row.seed, start=start)
        assert evaluate_network(trained, run.data, "holdout") == row.holdout_accuracy
    Path("weights.pth").unlink()
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        supernets.rank_supernets(run, nets=3, repeated=0, epochs=1)
