"""Jobs whose supernets start from published weights."""

import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nas import job as jobs
from nas.data import load_dataset
from nas.deploy import retrain
from nas.errors import BudgetError, JobFileError, RunFolderError, WeightsError
from nas.files import jsonl
from nas.job import load_job, probes, supernets
from nas.job.folder import claim
from nas.job.stages import open_data
from nas.opened_run import open_run
from nas.pretrained import read_weights
from nas.run import judged
from nas.run.probes import ProbeAtSize, ProbeSummary
from nas.run.record import read_run
from nas.run.settings import PretrainedSettings
from nas.run.trained import PretrainedSummary
from nas.space import load_definition
from nas.supernet import checkpoint, settings
from nas.supernet.evaluation import evaluate_network
from nas.supernet.ground_truth import STANDALONE_FILE
from nas.supernet.pretrained import probed_network, published_state
from nas.supernet.records import STANDALONE
from nas.supernet.settings import FINE_TUNING_RATE, MANY_IMAGES
from nas.supernet.standalone import train_standalone
from nas.supernet.weights import Supernet
from nas.torch_network import Network
from tests.job.runs import Notes
from tests.latency.fake_runtime import use_fake_device

SPACE = """
from nas.space import Reference, SearchSpace, Stage
SPACE = SearchSpace(
    "small",
    (
        Stage("stem", "conv", (4, 8), stride=2, per_stage={"kernel": 3}),
        Stage("body", "inverted_residual", (8, 16), (1, 2), 2,
              per_block={"kernel": (3, 5), "expand": 2}),
        Stage("head", "linear_classifier"),
    ),
    references=(
        Reference("small_1.0", {"*.width": (8, 16), "*.depth": 2, "*.kernel": 3}, "",
                  image_size=32),
        Reference("small_0.5", {"*.width": (4, 16), "*.depth": 2, "*.kernel": 3}, "",
                  image_size=32),
    ),
)
"""

JOB = """
[data]
source = "photos"
image_size = 8

[training]
epochs = 1
flip = false

[[space]]
name = "small.py"
pretrained = { file = "weights.pth", conventions = "torch", source = "a friend", data = "toys" }
"""

RUN = Path("results/job")
NAME = "at_widths_of_small_1.0"
WEIGHTS = RUN / "supernets" / NAME / "supernet.safetensors"


def write_files() -> Path:
    """Write the job, its space, its photos and its weights into the working directory."""
    write_photos("photos", 24, 8, 8)
    Path("small.py").write_text(SPACE)
    Path("job.toml").write_text(JOB)
    Path("weights.pth").write_bytes(weights_of("small_1.0"))
    return Path("job.toml")


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


def weights_of(name):
    """A file of a published network with random weights."""
    graph = load_definition("small.py").adapt(image_size=32).reference(name).graph
    file = BytesIO()
    torch.save(Network(graph, torch.Generator().manual_seed(7)).state_dict(), file)
    return file.getvalue()


def write_photos(folder, count, height, width):
    """Write so many noisy photos of each of two classes, dark and light ones."""
    rng = np.random.default_rng(0)
    for value, name in enumerate(("dark", "light")):
        Path(folder, name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(60 * value, 200 + 50 * value, (height, width, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(Path(folder, name, f"{number}.png"))


def test_supernet_starts_from_the_file_at_a_lower_rate(trained):
    summary = read_run(RUN).pretrained[NAME]
    assert summary.network == "small_1.0"
    assert summary.file == "weights.pth"
    assert summary.conventions == "torch"
    assert ", source a friend, license unknown, trained on toys; the space small" in summary.summary
    _, record = checkpoint.read(WEIGHTS)
    assert record.published == f"{summary.sha256}-torch"
    images = len(open_run(RUN).data.train)
    rate = 0.1 * FINE_TUNING_RATE * images / MANY_IMAGES
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
        monkeypatch.setattr(settings, "MANY_IMAGES", 10)
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


def opened(job):
    """The run of a job after its images were opened, before it has begun to train."""
    with claim(RUN, load_job(job)) as run:
        open_data(run)
        run.save()
    return run


def test_probes_are_those_of_the_latest_job_until_the_run_has_begun(job, monkeypatch):
    run = opened(job)
    assert (list(run.record.probes), run.data.image_size) == ([NAME], 8)
    with monkeypatch.context() as patch:
        patch.setattr("nas.job.stages.measure_probes", None)  # The same are not measured again.
        opened(job)
    job.write_text(JOB.replace("image_size = 8", "image_size = 16"))
    run = opened(job)
    assert run.data.image_size == run.record.probes[NAME].image_size == 16
    Path("weights.pth").write_bytes(weights_of("small_0.5"))
    (probe,) = opened(job).record.probes.values()
    assert probe.network == "small_0.5"


def test_probe_of_the_published_network_is_recorded(trained):
    run = open_run(RUN)
    probe = run.record.probes[NAME]
    assert (probe.network, [each.image_size for each in probe.sizes]) == ("small_1.0", [8])
    data, space = run.data, run.spaces[NAME]
    published = read_weights("weights.pth", conventions="torch", spaces=[space])
    network = probed_network(
        space.reference("small_1.0"), published, data, seed=0, device=torch.device("cpu")
    )
    # The file does not say how images are normalised, so both networks see the same zeros.
    judged = [evaluate_network(network, data, part) for part in ("search", "holdout")]
    counts = [len(data.search), len(data.holdout)]
    assert probe.own.judged == pytest.approx(np.average(judged, weights=counts), abs=0.02)
    assert probe.own.images == len(data.train) + len(data.search)
    assert f"a linear probe of small_1.0 reaches {probe.own.accuracy:.1%} at 8 px" in probe.text


def test_probes_of_photos_are_measured_at_the_sizes_that_they_have(job, monkeypatch):
    monkeypatch.setattr(probes, "PROBE_SIZES", (8, 12, 16, 24))
    write_photos("others", 60, 17, 20)
    job.write_text(JOB.replace('photos"\nimage_size = 8', 'others"\nimage_size = 12'))
    probe = opened(job).record.probes[NAME]
    assert [each.image_size for each in probe.sizes] == [8, 12, 16]
    assert probe.image_size == probe.own.image_size == 12
    assert min(each.accuracy for each in probe.sizes) > 0.9


def test_hold_out_images_only_judge_a_probe(job, monkeypatch):
    """They have no part in what an image size is chosen by."""
    known = opened(job).record.probes[NAME].own

    def permuted(*arguments, **options):
        data = load_dataset(*arguments, **options)
        return replace(data, holdout=replace(data.holdout, labels=1 - data.holdout.labels))

    monkeypatch.setattr("nas.job.inputs.load_dataset", permuted)
    other = opened(job).record.probes[NAME].own
    assert (other.accuracy, other.images) == (known.accuracy, known.images)
    assert other.judged != known.judged


@pytest.mark.parametrize("is_better", [True, False])
@pytest.mark.parametrize("search_judges", [True, False])
def test_finalist_is_a_probe_where_images_that_do_not_judge_say_so(
    trained, is_better, search_judges, monkeypatch
):
    """Training images choose where those of the search judge, too, and those of the search else."""
    if not search_judges:
        monkeypatch.setattr(judged, "SUFFICIENT_HOLDOUT_IMAGES", 1)
    with claim(RUN, load_job(trained)) as run:
        open_data(run)
        (architecture,) = run.published_networks.values()
        weights = run.published[NAME]
        state = probed_network(
            architecture, weights, run.data, seed=0, device=torch.device("cpu")
        ).tensors()
        slot = architecture.graph.ops[-1].slot_name

        def accuracy(network, data):
            assert not search_judges
            is_probe = torch.equal(network.tensors()[f"{slot}.weight"], state[f"{slot}.weight"])
            return 0.5 + 0.1 * (is_probe == is_better)

        def cross_validate(network, published, data, settings, **others):
            assert search_judges
            rate = settings.learning_rate / FINE_TUNING_RATE * MANY_IMAGES
            assert rate == pytest.approx(0.1 * (len(data.train) // 2))
            assert (network, published, settings.epochs) == (architecture, weights, 1)
            return is_better

        monkeypatch.setattr(retrain, "evaluate_network", accuracy)
        monkeypatch.setattr(retrain, "is_probe_better", cross_validate)
        setup = retrain.Retraining(run, epochs=1, probed=run.published)
        record = retrain.train_model(setup, "own", architecture)
    assert record.is_probe == is_better
    trained, _ = checkpoint.read(RUN / "models" / "own" / "weights.safetensors")
    conv = next(name for name in state if name.endswith("depthwise.weight"))
    assert torch.equal(trained[conv], state[conv]) == is_better
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


# image_size = "auto"

PHOTO_SIZE = 96


@pytest.fixture
def auto_job(job):
    """A job with photos of two classes whose image size is not decided."""
    write_photos("large", 20, PHOTO_SIZE, PHOTO_SIZE)
    job.write_text(JOB.replace('photos"\nimage_size = 8', 'large"\nimage_size = "auto"'))
    return job


def use_accuracies(monkeypatch, accuracies):
    """Replace the probes by such accuracies by network and image size; return the sizes used."""
    used = []

    def probe(weights, space, data, judges):
        used.append(data.image_size)
        value = accuracies[weights.reference.name][data.image_size]
        macs = space.reference(weights.reference.name).graph.macs
        return ProbeAtSize(
            image_size=data.image_size, accuracy=value, images=9, judged=value, macs=macs
        )

    monkeypatch.setattr(probes, "_probe", probe)
    plan = SimpleNamespace(epochs={NAME: probes.MIN_EPOCHS}, trials=probes.MIN_NETWORKS)
    monkeypatch.setattr(probes, "make_plan", lambda *_, **__: plan)
    return used


@pytest.mark.parametrize(("at_64", "at_96", "chosen"), [(0.895, 0.9, 64), (0.88, 0.9, 96)])
def test_image_size_is_the_smallest_one_that_is_nearly_as_accurate(
    auto_job, monkeypatch, at_64, at_96, chosen
):
    use_accuracies(monkeypatch, {"small_1.0": {32: 0.5, 64: at_64, 96: at_96}})
    progress = Notes()
    supernets.train_job_supernets(load_job(auto_job), RUN, progress=progress)
    (why,) = [note for note in progress.notes if note.startswith("image_size")]
    assert why == (
        f'image_size = "auto" chooses {chosen} px: {chosen} px has the fewest operations within a '
        "point of the best probe"
    )
    (probe,) = [note for note in progress.notes if "a linear probe of small_1.0" in note]
    assert f"{at_64:.1%} at 64 px (" in probe
    assert f"{at_96:.1%} at 96 px (" in probe
    assert sum("one hold-out image is" in note for note in progress.notes) == 1
    run = open_run(RUN)
    assert run.settings.data.image_size == load_job(RUN / "job.toml").data.image_size == "auto"
    assert run.record.settings.image_size == run.record.probes[NAME].image_size == chosen
    assert run.spaces[NAME].image_size == run.data.image_size == chosen
    # Later starts do not compare again, even where that would choose another size.
    used = use_accuracies(monkeypatch, {"small_1.0": {64: 0.1, 96: 0.9}})
    supernets.train_job_supernets(load_job(auto_job), RUN)
    assert open_run(RUN).record.settings.image_size == chosen
    assert used == []
    auto_job.write_text(auto_job.read_text().replace('"auto"', str(chosen)))
    with pytest.raises(RunFolderError, match=r"\[data\] image_size was 'auto' and is now"):
        supernets.train_job_supernets(load_job(auto_job), RUN)


def test_images_of_another_source_choose_anew_until_the_run_has_begun(auto_job, monkeypatch):
    for expected, accuracy in ((64, 0.9), (64, 0.1), (96, 0.1)):
        used = use_accuracies(monkeypatch, {"small_1.0": {64: accuracy, 96: 0.9}})
        with claim(RUN, load_job(auto_job)) as run:
            open_data(run)
            run.save()
            assert run.record.settings.image_size == run.data.image_size == expected
        if (expected, accuracy) == (64, 0.1):
            assert used == []
            shutil.copytree("large", "others")
            next(Path("others", "dark").iterdir()).unlink()
            auto_job.write_text(auto_job.read_text().replace('"large"', '"others"'))
    assert run.record.probes[NAME].own.accuracy == 0.9


def test_image_size_suffices_for_each_published_network(auto_job, monkeypatch):
    Path("other.py").write_text(SPACE.replace('"small"', '"other"'))
    Path("other.pth").write_bytes(weights_of("small_0.5"))
    own = '[[space]]\nname = "other.py"\npretrained = { file = "other.pth", conventions = "torch" }'
    auto_job.write_text(f"{auto_job.read_text()}\n{own}\n")
    accuracies = {"small_1.0": {64: 0.9, 96: 0.9}, "small_0.5": {64: 0.8, 96: 0.9}}
    used = use_accuracies(monkeypatch, accuracies)
    progress = Notes()
    assert probes.choose_image_size(load_job(auto_job), progress, open_runtimes=list) == 96
    assert used == [64, 64, 96, 96]
    assert [note.partition(" px")[0] for note in progress.notes] == [
        'image_size = "auto" chooses 96'
    ]


@pytest.mark.parametrize(
    ("at_96", "at_64", "settings", "chosen"),
    [
        ((5, 100), (9, 300), "", 96),
        ((4.9, 300), (9, 300), "", 64),
        ((9, 99), (9, 300), "", 64),
        ((9, 40), (9, 300), "[search]\ntrials = 40", 96),
        ((1.1, 36), (2.0, 60), "", 64),
        (None, (9, 300), "", 64),
    ],
)
def test_image_size_leaves_the_training_and_the_search_enough(
    auto_job, monkeypatch, at_96, at_64, settings, chosen
):
    """The plan of each size has so many epochs and networks, or no time for its table."""
    use_accuracies(monkeypatch, {"small_1.0": {32: 0.5, 64: 0.7, 96: 0.9}})
    text = auto_job.read_text().replace("epochs = 1", "epochs = 9")
    auto_job.write_text(f"{text}\n{settings}\n")
    planned = {96: at_96, 64: at_64}

    def make_plan(settings, data, spaces, *_, timed):
        assert {each.image_size for each in spaces.searched.values()} == {timed.image_size}
        if planned[timed.image_size] is None:
            raise BudgetError("too short", remedy="", smallest="9h")
        epochs, networks = planned[timed.image_size]
        return SimpleNamespace(epochs={NAME: 90, "other": epochs}, trials=networks)

    monkeypatch.setattr(probes, "make_plan", make_plan)
    progress = Notes()
    assert probes.choose_image_size(load_job(auto_job), progress, open_runtimes=list) == chosen
    (why,) = progress.notes
    assert ("the fewest that are worth it" in why) == (chosen == 64)
    if at_96 == (1.1, 36):
        assert "at 96 px the budget pays for 1.1 epochs and about 36 networks and at 64 px" in why


def test_probes_of_equal_numbers_of_images_are_compared(job, monkeypatch):
    monkeypatch.setattr(probes, "PROBE_SIZES", (8, 12, 16))
    monkeypatch.setattr(probes, "MAX_OTHER_IMAGES", 10)
    write_photos("others", 60, 17, 20)
    job.write_text(JOB.replace('photos"\nimage_size = 8', 'others"\nimage_size = 12'))
    summary = opened(job).record.probes[NAME]
    assert [each.image_size for each in summary.sizes] == [8, 12, 12, 16]
    assert {each.images for each in summary.compared} == {2 * 10}, "the hold-out judges"
    assert [each.image_size for each in summary.compared] == [8, 12, 16]
    assert summary.own.images > 60
    assert summary.text.count("% at 12 px") == 2
    assert "of 20 images that it did not learn, and with all images 1" in summary.text


def test_a_probe_of_more_images_is_no_reason_for_a_size():
    """The probes of 300 photos say 192 px; that of all photos at 64 px learned more."""
    macs = {64: 10, 192: 90}
    rows = [(64, 0.583, 300), (64, 0.851, 3068), (192, 0.715, 300)]
    sizes = [
        ProbeAtSize(
            image_size=size, accuracy=accuracy, images=images, judged=accuracy, macs=macs[size]
        )
        for size, accuracy, images in rows
    ]
    summary = ProbeSummary(network="net", image_size=64, sizes=tuple(sizes))
    assert summary.own == sizes[1]
    assert summary.worthwhile == sizes[2]
    assert summary.gain == pytest.approx(0.132)
    assert summary.text == (
        "a linear probe of net reaches 58.3% at 64 px (10 MACs) and 71.5% at 192 px (90 MACs), of "
        "300 images that it did not learn, and with all images 85.1% at 64 px, of 3,068; "
        "image_size = 192 would gain 13.2 points with 9.0 times the operations"
    )


def test_plan_says_which_image_size_it_would_choose(auto_job, monkeypatch):
    use_fake_device(monkeypatch)
    progress = Notes()
    plan = jobs.plan_job(load_job(auto_job), progress=progress)
    (why,) = [note for note in progress.notes if note.startswith("image_size")]
    assert why.startswith(f'image_size = "auto" chooses {plan.image_size} px: ')
    assert plan.image_size in (64, 96)
    assert not RUN.exists()


def test_automatic_image_size_without_published_weights_is_refused(auto_job):
    text = "".join(line for line in auto_job.open() if not line.startswith("pretrained"))
    auto_job.write_text(text)
    for start in (jobs.run_job, jobs.search_job, supernets.train_job_supernets):
        with pytest.raises(JobFileError, match=r"no \[\[space\]\] has pretrained") as error:
            start(load_job(auto_job), RUN)
        assert error.value.exit_status == 2
    with pytest.raises(JobFileError, match="Write a number of pixels"):
        jobs.plan_job(load_job(auto_job))
    assert not RUN.exists()


@pytest.mark.slow
def test_retargeted_run_has_the_image_size_and_the_resolutions(auto_job, monkeypatch):
    use_accuracies(monkeypatch, {"small_1.0": {64: 0.8, 96: 0.9}})
    text = auto_job.read_text() + "resolutions = [0.5, 1.0]\n[search]\ntrials = 4\n"
    text += "[finish]\nmeasure = 2\nretrain = 1\nreferences = []\nexport = ['onnx']\n"
    auto_job.write_text(text)

    use_fake_device(monkeypatch)
    jobs.run_job(load_job(auto_job), RUN)
    run = open_run(RUN)
    assert set(run.spaces[NAME].parameters["resolution"]) == {48, 96}
    (model,) = run.models
    assert model.card.image_size == run.data.image_size == 96
    other = jobs.retarget(run, threads=2, trials=2, retrain=1).run
    assert other.record.settings.image_size == other.data.image_size == 96
    assert other.spaces[NAME].digest == run.spaces[NAME].digest
    assert [each.own.image_size for each in other.record.probes.values()] == [96]


def test_supernet_is_ranked_against_networks_from_the_same_weights(trained):
    run = open_run(RUN)
    supernets.rank_supernets(run, nets=2, repeated=0, epochs=1)
    published = read_weights("weights.pth", conventions="torch", spaces=[run.spaces[NAME]])
    for row in jsonl.read(RUN / STANDALONE_FILE, STANDALONE):
        assert row.training["published"] == published.digest
        assert row.training["learning_rate"] == pytest.approx(0.04 * len(run.data.train) / 2000)
        network = run.spaces[NAME].from_json(row.architecture.model_dump())
        start = published_state(
            network, published, run.data, seed=row.seed, device=torch.device("cpu")
        )
        recipe = run.settings.training.fine_tuned(run.training_settings(1), len(run.data.train))
        trained = train_standalone(network.graph, run.data, recipe, seed=row.seed, start=start)
        assert evaluate_network(trained, run.data, "holdout") == row.holdout_accuracy
    Path("weights.pth").unlink()
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        supernets.rank_supernets(run, nets=3, repeated=0, epochs=1)
