"""Linear probes of published networks, and the image size of a job that they choose."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from nas import job as jobs
from nas.data import load_dataset
from nas.errors import BudgetError, JobFileError, RunFolderError
from nas.job import load_job, probes, supernets
from nas.job.folder import claim
from nas.job.stages import open_data
from nas.latency import LatencyTable, build_table
from nas.opened_run import open_run
from nas.pretrained import read_weights
from nas.run.probes import ProbeAtSize, ProbeSummary
from nas.space import load_definition
from nas.supernet.evaluation import evaluate_network
from nas.supernet.pretrained import probed_network
from tests.job.published import JOB, NAME, RUN, SPACE, opened, weights_of, write_files, write_photos
from tests.job.runs import Notes
from tests.latency.fake_runtime import FakeRuntime, device, latency_us, use_fake_device


@pytest.fixture
def job(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_files()


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


def test_probe_of_the_published_network_is_recorded(job):
    opened(job)
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


def test_probes_of_photos_are_measured_at_larger_sizes_as_well(job, monkeypatch):
    monkeypatch.setattr(probes, "PROBE_SIZES", (8, 12, 16, 24, 48))
    monkeypatch.setattr(probes, "MAX_ENLARGEMENT", 2)
    write_photos("others", 60, 17, 20)
    job.write_text(JOB.replace('photos"\nimage_size = 8', 'others"\nimage_size = 12'))
    probe = opened(job).record.probes[NAME]
    assert [each.image_size for each in probe.sizes] == [8, 12, 16, 24]
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


PHOTO_SIZE = 96


@pytest.fixture
def auto_job(job, monkeypatch):
    """A job with photos of two classes whose image size is not decided."""
    monkeypatch.setattr(probes, "PROBE_SIZES", (64, 96))
    write_photos("large", 20, PHOTO_SIZE, PHOTO_SIZE)
    job.write_text(JOB.replace('photos"\nimage_size = 8', 'large"\nimage_size = "auto"'))
    return job


def use_accuracies(monkeypatch, accuracies):
    """Replace the probes by such accuracies by network and image size; return the sizes used."""
    used = []

    def probe(weights, space, data):
        used.append(data.image_size)
        value = accuracies[weights.reference.name][data.image_size]
        macs = space.reference(weights.reference.name).graph.macs
        return ProbeAtSize(
            image_size=data.image_size, accuracy=value, images=9, judged=value, macs=macs
        )

    monkeypatch.setattr(probes, "_probe", probe)
    plan = SimpleNamespace(
        epochs={NAME: probes.MIN_EPOCHS},
        trials=probes.MIN_NETWORKS,
        retrain=1,
        finalist_epochs=probes.MIN_FINALIST_EPOCHS,
    )
    monkeypatch.setattr(probes, "make_plan", lambda *_, **__: plan)
    return used


@pytest.mark.parametrize(("at_64", "at_96", "chosen"), [(0.895, 0.9, 64), (0.88, 0.9, 96)])
def test_image_size_is_the_smallest_one_that_is_nearly_as_accurate(
    auto_job, monkeypatch, at_64, at_96, chosen
):
    use_accuracies(monkeypatch, {"small_1.0": {64: at_64, 96: at_96}})
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


def test_image_size_is_chosen_by_default_where_weights_are_published(auto_job, monkeypatch):
    used = use_accuracies(monkeypatch, {"small_1.0": {64: 0.8, 96: 0.9}})
    text = auto_job.read_text().replace('image_size = "auto"', "")
    auto_job.write_text(text)
    run = opened(auto_job)
    assert run.data.image_size == run.record.settings.image_size == 96
    assert used == [64, 96, 96], "the last one is of the images of the run"
    assert load_job(RUN / "job.toml").data.image_size is None
    opened(auto_job)
    assert len(used) == 3, "a later start has the size of the first"
    # A space of new weights has this size, too; a trained network of a run is compared with none.
    auto_job.write_text(f'{text}\n[[space]]\nname = "mobilenet_tiny"\n')
    assert load_job(auto_job).chooses_image_size
    within = text.partition("pretrained")[0] + 'within = "run:abc"\n'
    auto_job.write_text(within)
    assert not load_job(auto_job).chooses_image_size


def network_at(size, name="small_1.0"):
    return load_definition("small.py").adapt(image_size=size, classes=2).reference(name)


def network_ms(size, device):
    """The latency of the published network on the computed device of a job, or by its table."""
    kernels = FakeRuntime().kernels(network_at(size).graph)
    own_us = sum(map(latency_us, kernels))
    return (own_us + 2 + 0.5 * len(kernels) if device else 1.1 * own_us) / 1000


@pytest.mark.parametrize("limit", ["macs", "latency", "device"])
@pytest.mark.parametrize(("share", "chosen"), [(1.0, 96), (0.95, 96), (0.45, 64)])
def test_image_size_leaves_networks_within_the_limits(auto_job, monkeypatch, limit, share, chosen):
    """The smallest network has 0.4 of the operations of the published one, and 64 px has 0.44."""
    use_fake_device(monkeypatch)
    use_accuracies(monkeypatch, {"small_1.0": {64: 0.85, 96: 0.9}})
    if limit == "macs":
        limits = f"max_macs = {int(share * network_at(96).macs)}"
    elif limit == "latency":
        limits = f"max_latency_ms = {share * network_ms(96, device=False)}"
    else:
        table = LatencyTable.open_or_create("phone.jsonl", FakeRuntime(device(processor="Phone")))
        graphs = [network_at(size).graph for size in (64, 96)]
        build_table(table, [k for g in graphs for k in FakeRuntime().kernels(g)], FakeRuntime())
        most_ms = share * network_ms(96, device=True)
        limits = f'device = [{{ table = "phone.jsonl", max_latency_ms = {most_ms} }}]'
    auto_job.write_text(f"{auto_job.read_text()}\n[search]\n{limits}\n")
    progress = Notes()
    size, _ = probes.choose_image_size(
        load_job(auto_job), progress, open_runtimes=lambda: [FakeRuntime()]
    )
    assert size == chosen
    (why,) = progress.notes
    assert ("less what the limits cost" in why) == (share < 1)


def test_sizes_are_probed_for_a_share_of_the_budget(auto_job, monkeypatch):
    used = use_accuracies(monkeypatch, {"small_1.0": {64: 0.8, 96: 0.9}})
    monkeypatch.setattr(probes, "PROBES_SHARE", 1e-9)
    size, _ = probes.choose_image_size(load_job(auto_job), Notes(), open_runtimes=list)
    assert (size, used) == (64, [64])


@pytest.mark.parametrize(
    ("sizes", "mode", "probed"),
    [
        ([(20, 30)], "RGB", [64, 96]),
        ([(9, 9)], "RGB", [32]),
        ([(40, 40)], "L", [64, 96]),
        ([(3, 300), (500, 400), (12, 90)], "RGB", [64]),
    ],
)
def test_image_size_of_unusual_images(auto_job, monkeypatch, sizes, mode, probed):
    rng = np.random.default_rng(0)
    for label in range(2):
        folder = Path("unusual", str(label))
        folder.mkdir(parents=True)
        for number in range(18):
            width, height = sizes[number % len(sizes)]
            pixels = rng.integers(90 * label, 160 + 90 * label, (height, width, 3))
            image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
            image.save(folder / f"{number}.png")
    auto_job.write_text(auto_job.read_text().replace('"large"', '"unusual"'))
    plan = SimpleNamespace(epochs={NAME: 9}, trials=100, retrain=0, finalist_epochs=0)
    monkeypatch.setattr(probes, "make_plan", lambda *_, **__: plan)
    run = opened(auto_job)
    summary = run.record.probes[NAME]
    assert {each.image_size for each in summary.sizes} == set(probed)
    assert run.data.image_size in probed
    assert run.data.channels == (1 if mode == "L" else 3)


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
    size, compared = probes.choose_image_size(load_job(auto_job), progress, open_runtimes=list)
    assert size == 96
    assert [[each.accuracy for each in own] for own in compared.values()] == [
        [0.9, 0.9],
        [0.8, 0.9],
    ]
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
        ((9, 300, 1, 8), (9, 300), "", 64),
        ((9, 300, 0, 0), (9, 300), "", 96),
        ((9, 40), (9, 300), "[search]\ntrials = 40", 96),
        ((1.1, 36), (2.0, 60), "", 64),
        (None, (9, 300), "", 64),
    ],
)
def test_image_size_leaves_the_training_and_the_search_enough(
    auto_job, monkeypatch, at_96, at_64, settings, chosen
):
    """The plan of each size has so many epochs and networks, or no time for its table."""
    use_accuracies(monkeypatch, {"small_1.0": {64: 0.7, 96: 0.9}})
    text = auto_job.read_text().replace("epochs = 1", "epochs = 9")
    auto_job.write_text(f"{text}\n{settings}\n")
    planned = {96: at_96, 64: at_64}

    def make_plan(settings, data, spaces, *_, timed):
        assert {each.image_size for each in spaces.searched.values()} == {timed.image_size}
        if planned[timed.image_size] is None:
            raise BudgetError("too short", remedy="", smallest="9h")
        epochs, networks, *others = planned[timed.image_size]
        finalists, finalist_epochs = others or (1, 10)
        return SimpleNamespace(
            epochs={NAME: 90, "other": epochs},
            trials=networks,
            retrain=finalists,
            finalist_epochs=finalist_epochs,
        )

    monkeypatch.setattr(probes, "make_plan", make_plan)
    progress = Notes()
    assert probes.choose_image_size(load_job(auto_job), progress, open_runtimes=list)[0] == chosen
    (why,) = progress.notes
    assert ("the fewest that are worth it" in why) == (chosen == 64)
    if at_96 == (1.1, 36):
        assert "at 96 px the budget pays for 1.1 epochs, about 36 networks and 10 epochs" in why
    assert " at 64 px the" not in why, "no plan is made of the last size"


def test_no_plan_is_made_of_sizes_that_a_budget_cannot_pay(auto_job, monkeypatch):
    """An epoch at 192 px is 1.4 at 160 px, 2.3 at 128 px and 4 at 96 px, of 5 that are enough."""
    sizes = (64, 96, 128, 160, 192)
    monkeypatch.setattr(probes, "PROBE_SIZES", sizes)
    use_accuracies(monkeypatch, {"small_1.0": {size: size / 200 for size in sizes}})
    planned = []

    def make_plan(*_, timed, **__):
        planned.append(timed.image_size)
        epochs = (192 / timed.image_size) ** 2
        return SimpleNamespace(epochs={NAME: epochs}, trials=300, retrain=0, finalist_epochs=0)

    monkeypatch.setattr(probes, "make_plan", make_plan)
    text = auto_job.read_text().replace("epochs = 1", "epochs = 9")
    auto_job.write_text(text)
    size, _ = probes.choose_image_size(load_job(auto_job), Notes(), open_runtimes=list)
    assert (size, planned) == (64, [192, 96])


def test_probes_of_equal_numbers_of_images_are_compared(job, monkeypatch):
    monkeypatch.setattr(probes, "PROBE_SIZES", (8, 12, 16))
    monkeypatch.setattr(probes, "MAX_SAMPLE", 10)
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
