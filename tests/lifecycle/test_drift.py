"""Drift in the log of a deployed model: what is compared, found and refused."""

import gzip
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from nas.data import ImageDataset, Images, load_dataset
from nas.deploy.reference import FieldReference, field_reference
from nas.deploy.script_log import append_line, image_figures
from nas.errors import MeasurementError, RequestError
from nas.lifecycle.drift import MEASURES, _holm, _psi, find_drift, measures, read_log, reference_of
from tests.commands import document
from tests.conftest import EXAMPLE
from tests.plans.cases import trained_ids

MODEL = EXAMPLE / "models" / trained_ids(EXAMPLE)[-1]

REFERENCE_IMAGES, DAY = 2000, 1000


def draw(rng, images, *, shift=0.0, weights=(0.4, 0.3, 0.2, 0.1)):
    """Return values and classes of images of a made-up field: confidence is shifted down."""
    values = rng.beta(5, 2, (images, len(MEASURES)))
    values[:, 0] = np.clip(values[:, 0] - shift, 0, 1)
    return values, rng.choice(len(weights), images, p=weights)


def reference(rng):
    values, classes = draw(rng, REFERENCE_IMAGES)
    columns = np.sort(np.round(values, 6), axis=0).T.tolist()
    return FieldReference(
        weights_digest="0" * 64,
        accuracy=0.8,
        predicted=tuple(np.bincount(classes, minlength=4).tolist()),
        **dict(zip(MEASURES, map(tuple, columns), strict=True)),
    )


def test_figures_are_those_of_the_grey_values():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 8, 6, 3), np.uint8)
    for image, figures in zip(pixels, image_figures(pixels), strict=True):
        grey = image.mean(-1) / 255
        steps = (
            [abs(a - b) for row in grey for a, b in pairwise(row)],
            [abs(a - b) for row in grey.T for a, b in pairwise(row)],
        )
        expected = [grey.mean(), grey.std(), sum(map(np.mean, steps)) / 2]
        assert figures == pytest.approx(expected, rel=1e-5)
    assert image_figures(np.full((1, 4, 4, 1), 128, np.uint8))[0] == pytest.approx(
        [128 / 255, 0, 0], abs=1e-6
    )


def test_index_and_correction_are_their_closed_forms():
    # Shares of 1/4 and 3/4 against 1/2 each: 0.25 ln(1/2) - 0.25 ln(2/3) with opposite signs.
    index = _psi(np.array([25_000_000, 75_000_000]), np.array([50_000_000, 50_000_000]))
    assert index == pytest.approx(0.25 * np.log(2) - 0.25 * np.log(2 / 3), rel=1e-6)
    assert _psi(np.array([5, 5]), np.array([50, 50])) == pytest.approx(0)
    assert _holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_hundred_days_without_drift_have_at_most_one_alarm():
    rng = np.random.default_rng(0)
    own = reference(rng)
    alarms = shown = 0
    for _ in range(100):
        compared = measures(own, *draw(rng, DAY))
        alarms += any(each.moved for each in compared)
        shown += any(each.p_value <= 0.01 for each in compared)
    assert alarms <= 1
    # The tests alone keep their level, too: all days share one reference.
    assert shown <= 6


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"shift": 0.1}, {"confidence"}),
        ({"weights": (0.1, 0.2, 0.3, 0.4)}, {"classes"}),
        ({"shift": 0.2, "weights": (0.1, 0.2, 0.3, 0.4)}, {"confidence", "classes"}),
    ],
)
def test_what_moved_is_found_in_500_images(changes, moved):
    rng = np.random.default_rng(1)
    own = reference(rng)
    for _ in range(10):
        compared = measures(own, *draw(rng, 500, **changes))
        assert {each.name for each in compared if each.moved} == moved


def photos(folder: Path, images: np.ndarray, change=lambda image: image) -> list[Path]:
    """Save images as PNG files."""
    folder.mkdir()
    for at, pixels in enumerate(images):
        change(Image.fromarray(pixels[:, :, 0])).save(folder / f"{at}.png")
    return sorted(folder.glob("*.png"))


def run_on(model: Path, log: Path, paths: list[Path], *options: str) -> None:
    # `model.so` of the example is for processors like the one that made it.
    onnx = ("--model", model / "model.onnx")
    command = [sys.executable, model / "run.py", *onnx, "--log", log, *options, *paths]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def test_images():
    return load_dataset("digits", validation_fraction=0.5).test.pixels


@pytest.fixture(scope="module")
def usual_log(tmp_path_factory, test_images) -> Path:
    """Return the log of test images, which are like those of the reference."""
    folder = tmp_path_factory.mktemp("usual")
    run_on(MODEL, folder / "log.jsonl", photos(folder / "photos", test_images), "--log-paths")
    return folder / "log.jsonl"


def test_script_logs_what_the_package_computes(usual_log, test_images):
    own = read_log(usual_log, reference_of(MODEL))
    by_name = {Path(name).stem: at for at, name in enumerate(own.names)}
    order = [by_name[str(at)] for at in range(len(test_images))]
    assert own.values[order, 1:] == pytest.approx(image_figures(test_images), abs=2e-6)
    logits = _logits(test_images[:20])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert own.values[order[:20], 0] == pytest.approx(probabilities.max(1), abs=1e-4)
    assert (own.classes[order[:20]] == logits.argmax(1)).all()


def _logits(pixels):
    from nas.deploy.networks import load_trained
    from nas.opened_run import open_run

    return load_trained(open_run(EXAMPLE), MODEL.name).pixel_logits(pixels).astype(float)


def test_usual_images_have_no_drift(usual_log, invoke, tmp_path):
    picture = tmp_path / "drift.svg"
    done = invoke("drift", MODEL, usual_log, "--uncertain", 3, "--plot", picture)
    assert done.returncode == 0, done.stdout
    assert f"No drift in {len(_lines(usual_log))} images" in done.stdout
    assert done.stdout.count("label: ") == 3
    assert "confidence: index" in picture.read_text()
    printed = document(invoke("drift", MODEL, usual_log, "--uncertain", 3, "--json"))
    confidences = {line["image"]: line["confidence"] for line in _lines(usual_log)}
    assert printed["uncertain"] == sorted(confidences, key=lambda name: confidences[name])[:3]
    # The estimate is near the accuracy on these images, which the card has.
    card = json.loads((MODEL / "card.json").read_text())
    assert printed["estimated_accuracy"] == pytest.approx(card["accuracy"]["test"], abs=0.02)


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        (lambda image: image.filter(ImageFilter.GaussianBlur(1)), "sharpness"),
        (lambda image: image.point(lambda value: value // 3), "brightness"),
        (lambda image: image.rotate(90), "confidence"),
    ],
    ids=["blur", "darkness", "rotated"],
)
def test_changed_images_are_found(change, moved, tmp_path, test_images, invoke):
    log = tmp_path / "log.jsonl"
    run_on(MODEL, log, photos(tmp_path / "photos", test_images[:300], change))
    done = invoke("drift", MODEL, log, "--json")
    assert done.returncode == 1
    printed = json.loads(done.stdout)
    assert moved in printed["moved"]
    assert printed["verdict"].startswith("Drift in 300 images")
    assert "image" not in _lines(log)[0]
    # With --last, only so many lines count.
    last = json.loads(invoke("drift", MODEL, log, "--last", 50, "--json").stdout)
    assert last["images"] == 50


def test_estimated_accuracy_follows_confidences(tmp_path):
    own = reference_of(MODEL)
    lower = np.array(own.confidence) - 0.2
    for at, confidence in enumerate(np.clip(lower, 0, 1)):
        line = {"time": at, "model": own.weights_digest, "class": 0, "confidence": confidence}
        append_line(tmp_path / "log", line | dict.fromkeys(MEASURES[1:], 0.5))
    expected = own.accuracy - np.mean(own.confidence) + np.clip(lower, 0, 1).mean()
    assert find_drift(MODEL, tmp_path / "log").estimated_accuracy == pytest.approx(expected)


def test_share_of_right_answers_is_estimated_where_classes_are_judged_alike(tmp_path):
    """With other images of the same kind, the estimate is what a count of the answers gives.

    The classes have 90% and 10% of the images, and 95% and 50% of these get right answers.
    """
    rng = np.random.default_rng(0)
    labels = (rng.random(2000) < 0.1).astype(np.int64)
    sure = np.where(labels == 0, 0.95, 0.5)
    right = rng.random(2000) < sure
    pixels = rng.integers(0, 256, (2000, 4, 4, 1), np.uint8)
    logits = np.zeros((2000, 2))
    logits[np.arange(2000), np.where(right, labels, 1 - labels)] = np.log(sure / (1 - sure)) + 1e-6
    images = Images(pixels, labels)
    data = ImageDataset(
        "made-up", ("a", "b"), images, images, images, images, None, metric="balanced_accuracy"
    )
    model = SimpleNamespace(pixel_logits=lambda own: logits[: len(own)])
    reference = field_reference(model, images, "0" * 64)
    assert reference.accuracy == pytest.approx(right.mean())
    assert reference.accuracy == pytest.approx(np.mean(reference.confidence), abs=0.02)
    assert data.score(logits.argmax(1), labels) == pytest.approx(0.72, abs=0.06)


def test_unfinished_lines_and_unreadable_images_are_counted(tmp_path, test_images):
    log = tmp_path / "log.jsonl"
    paths = photos(tmp_path / "photos", test_images[:3])
    run_on(MODEL, log, paths)
    log.write_bytes(log.read_bytes()[:-20])
    (tmp_path / "broken.png").write_bytes(b"no image")
    onnx = ("--model", MODEL / "model.onnx")
    command = [sys.executable, MODEL / "run.py", *onnx, "--log", log, paths[0]]
    command.append(tmp_path / "broken.png")
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1
    own_digest = reference_of(MODEL).weights_digest
    own = read_log(log, reference_of(MODEL))
    assert (len(own.names), own.damaged, own.unreadable) == (3, 1, 1)
    assert "which are too few to be sure" in find_drift(MODEL, log).verdict
    log.unlink()
    for reason in ("not an image", "AttributeError: getexif", "not an image"):
        line = {"time": 1.0, "model": own_digest, "error": reason}
        append_line(log, line)
    reasons = "None of the 3 images in .* could be read; 2 of them: not an image"
    with pytest.raises(MeasurementError, match=reasons) as error:
        find_drift(MODEL, log)
    assert "run.py --check" in error.value.remedy


def test_compressed_log_is_read_whatever_its_name_is(usual_log, tmp_path):
    whole = gzip.compress(usual_log.read_bytes())
    (tmp_path / "log.1").write_bytes(whole)
    assert find_drift(MODEL, tmp_path / "log.1") == find_drift(MODEL, usual_log)
    for damaged in (whole[:-20], whole[:10] + b"no" + whole[12:], whole[:3]):
        (tmp_path / "log.1").write_bytes(damaged)
        with pytest.raises(RequestError, match=r"log\.1 cannot be read: \w"):
            find_drift(MODEL, tmp_path / "log.1")


def test_a_log_from_windows_loses_no_line(usual_log, tmp_path):
    text, log = usual_log.read_text(encoding="utf-8"), tmp_path / "log.jsonl"
    expected = read_log(usual_log, reference_of(MODEL))
    log.write_text(text, encoding="utf-8-sig", newline="\r\n")
    own = read_log(log, reference_of(MODEL))
    assert (own.names, own.damaged) == (expected.names, expected.damaged)
    log.write_text(text, encoding="utf-16")
    with pytest.raises(RequestError, match="is no log: it is text in UTF-16, .* saved as UTF-8"):
        read_log(log, reference_of(MODEL))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, (), "cannot be read"),
        ("", (), "has no image in its 0 lines"),
        ('{"time": 1, "model": "ffff"}\n', (), "line 1 was written by another model: ffff"),
        ("", ("--last", "0"), "last is 0"),
        ("", ("--max-psi", "-1"), "max_psi is -1"),
    ],
)
def test_wrong_logs_are_one_message(content, options, message, tmp_path, invoke):
    log = tmp_path / "log.jsonl"
    if content is not None:
        log.write_text(content)
    refused = invoke("drift", MODEL, log, *options)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert refused.stderr.count("error: ") == 1


def test_model_without_reference_is_refused(tmp_path):
    with pytest.raises(RequestError, match=r"has no reference\.json"):
        find_drift(tmp_path, tmp_path / "log")
