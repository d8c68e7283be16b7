from dataclasses import replace

import numpy as np
import pytest

from nas.data import ImageDataset, Images
from nas.deploy.model import image_reading
from nas.deploy.model_process import ModelProcess
from nas.deploy.verify import ReferenceImages, check_file, sample_images
from nas.errors import ExportError
from nas.run.model_card import Preprocessing
from tests.deploy import example_formats as formats

PREPROCESSING = Preprocessing(
    schema=3,
    reading=image_reading(4),
    image_size=4,
    channels=1,
    mean=(0.5,),
    std=(0.25,),
    classes=("a", "b", "c"),
)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (150, 4, 4, 1), np.uint8)
MATRIX = RNG.standard_normal((16, formats.CLASSES)).astype(np.float32)
LOGITS = ((PIXELS.reshape(150, 16) / 255 - 0.5) / 0.25).astype(np.float32) @ MATRIX
LABELS = LOGITS.argmax(1)
LABELS[:30] = (LABELS[:30] + 1) % formats.CLASSES
REFERENCE = ReferenceImages(Images(PIXELS, LABELS), LOGITS, LOGITS + 0.5)


def dataset(test: Images) -> ImageDataset:
    """Return a dataset that has test images, and hold-out images that are classified rightly."""
    none, holdout = test.take(slice(0)), REFERENCE.images.take(slice(30, 50))
    return ImageDataset("toy", PREPROCESSING.classes, none, none, holdout, test, None)


DATA = dataset(REFERENCE.images)


class InThisProcess(ModelProcess):
    """What runs a file without a process of its own."""

    def _call(self, function, *arguments, **settings):
        return function(*arguments)


def check(kind, path, matrix=MATRIX, reference=REFERENCE, *, data=DATA, parts=("holdout",)):
    np.save(path / kind.file_name, matrix.astype(np.float32))
    process = InThisProcess(kind(), path / kind.file_name)
    return check_file(process, reference, PREPROCESSING, data=data, parts=parts)


def test_right_file_is_described(tmp_path):
    steps = []
    np.save(tmp_path / "model.npy", MATRIX)
    with ModelProcess(formats.Matrix(), tmp_path / "model.npy") as process:
        checked = check_file(
            process,
            REFERENCE,
            PREPROCESSING,
            data=DATA,
            progress=lambda done, total: steps.append((done, total)),
        )
    assert checked.accuracy == 120 / 150
    assert checked.agreement == 1
    assert checked.difference < checked.tolerance
    assert checked.images == 150
    assert checked.size_bytes == (tmp_path / "model.npy").stat().st_size
    assert checked.versions == {"numpy": np.__version__}
    assert (150, 150) in steps
    assert steps[-1] == (20, 20)


def test_accuracies_are_those_on_the_test_images_and_on_the_hold_out_images(tmp_path):
    assert check(formats.Matrix, tmp_path, data=None).accuracy is None
    assert check(formats.Matrix, tmp_path, data=None).holdout_accuracy is None
    few = Images(PIXELS[20:40], LABELS[20:40])
    checked = check(formats.Matrix, tmp_path, data=dataset(few))
    balanced = replace(dataset(few), metric="balanced_accuracy")
    right = few.labels == LOGITS[20:40].argmax(1)
    by_class = [right[few.labels == label].mean() for label in np.unique(few.labels)]
    assert check(formats.Matrix, tmp_path, data=balanced).accuracy == np.mean(by_class)
    assert (checked.accuracy, checked.images) == (0.5, 150)
    assert checked.holdout_accuracy == 1
    # The search images, 20 to 30, are classified wrongly, and the 20 hold-out images rightly.
    with_search = replace(DATA, search=REFERENCE.images.take(slice(20, 30)))
    both = check(formats.Matrix, tmp_path, data=with_search, parts=("search", "holdout"))
    assert both.holdout_accuracy == 20 / 30
    assert check(formats.Matrix, tmp_path, data=with_search).holdout_accuracy == 1


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (MATRIX + 0.05 * MATRIX[::-1], r"does not compute what it should.*0\.001 is allowed"),
        (np.full_like(MATRIX, np.nan), "nan of their standard deviation"),
        (MATRIX[:, :2], r"gives logits \(150, 2\), not \(150, 3\)"),
    ],
)
def test_wrong_logits_are_an_error_with_their_difference(tmp_path, matrix, message):
    with pytest.raises(ExportError, match=message) as error:
        check(formats.Matrix, tmp_path, matrix)
    # `nas verify` says the same of a file that was exported long ago.
    assert "xport" not in str(error.value)


def test_int8_file_is_compared_with_the_quantised_network(tmp_path):
    with pytest.raises(ExportError, match="does not compute what it should"):
        check(formats.FastInt8Matrix, tmp_path)
    same = ReferenceImages(REFERENCE.images, LOGITS, LOGITS)
    assert check(formats.FastInt8Matrix, tmp_path, reference=same).quantised_layers == (1, 1)
    with pytest.raises(ExportError, match="none of its 1 layers runs in int8"):
        check(formats.Int8Matrix, tmp_path, reference=same)


def test_format_of_another_system_is_loaded_but_not_run(tmp_path):
    checked = check(formats.Elsewhere, tmp_path)
    assert (checked.runs_here, checked.accuracy, checked.versions) == (False, None, {})


def test_reference_images_survive_a_file(tmp_path):
    path = tmp_path / "verification.safetensors"
    REFERENCE.save(path)
    loaded = ReferenceImages.load(path)
    np.testing.assert_array_equal(loaded.images.pixels, PIXELS)
    np.testing.assert_array_equal(loaded.expected("int8"), LOGITS + 0.5)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExportError, match="cannot be read"):
        ReferenceImages.load(path)


def test_sampled_images_are_evenly_spaced():
    assert sample_images(REFERENCE.images, 4).labels.tolist() == LABELS[[0, 49, 99, 149]].tolist()
    assert len(sample_images(REFERENCE.images, 1000)) == 150
