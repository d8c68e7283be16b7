import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from nas.cli.models import script_text
from nas.data import load_dataset
from nas.deploy import benchmark, export
from nas.deploy.answers import find_answers
from nas.deploy.card import _limits
from nas.deploy.export import export_model
from nas.deploy.folder import SAMPLES_FILE, ModelFolder
from nas.deploy.formats import model_format
from nas.deploy.model import TrainedModel, normalised, preprocessing_of
from nas.deploy.model_process import ModelProcess
from nas.deploy.requests import ExportRequest
from nas.deploy.saved_model import load_model
from nas.deploy.scripts import run_script
from nas.deploy.verify import ReferenceImages, check_script, verify
from nas.errors import ExportError, IncompleteExportError, RequestError, RunFolderError
from nas.files.documents import to_json
from nas.quantisation.network import LARGEST_WEIGHT
from nas.run.model_card import ModelCard
from nas.run.settings import CardSettings
from nas.space import load_definition
from nas.torch_network import to_torch
from tests.data.image_files import in_format, noise, with_orientation
from tests.deploy.native_quantisation import quantise_here

FORMATS = ("onnx", "onnx-int8")


@pytest.fixture(scope="module", autouse=True)
def _few_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "MAX_ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def exported(trained, digits, origin, tmp_path_factory) -> ModelFolder:
    folder = ModelFolder(tmp_path_factory.mktemp("models") / "jf2a")
    export_model(trained, digits, folder, ExportRequest(FORMATS), origin)
    return folder


@pytest.fixture
def folder(exported, tmp_path) -> ModelFolder:
    """Return a copy of the exported folder, for tests that change it."""
    shutil.copytree(exported.path, tmp_path / "jf2a")
    return ModelFolder(tmp_path / "jf2a")


@pytest.fixture
def again(folder, trained, digits, origin):
    """Return a function that exports the network to the folder again."""

    def export_again(*formats: str, origin=origin, model=trained, data=digits, **settings):
        return export_model(model, data, folder, ExportRequest(formats, **settings), origin)

    return export_again


def state(folder: ModelFolder) -> dict[str, tuple[int, bytes]]:
    """Return time and content of all files that are not hidden."""
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.path.iterdir()
        if not path.name.startswith(".")
    }


def test_folder_has_verified_files_and_their_card(exported, trained, digits):
    assert set(exported.sums()) == {
        "architecture.json",
        "benchmark.svg",
        "card.json",
        "card.md",
        "model-int8.onnx",
        "model.onnx",
        "preprocessing.json",
        "run.py",
        "reference.json",
        "verification.safetensors",
    }
    exported.require_unchanged()
    card = exported.card
    assert [file.format for file in card.files] == list(FORMATS)
    for file in card.files:
        assert file.images == len(digits.test)
        assert file.difference <= file.tolerance
        assert file.latency.fastest_us in file.latency.rounds_us
        assert min(file.latency.first_us) <= file.latency.typical_us <= file.latency.slowest_us
    float32, int8 = card.files
    assert float32.accuracy == card.accuracy.test
    assert float32.holdout_accuracy == card.accuracy.holdout
    assert float32.agreement == 1
    assert int8.quantised_layers[0] == int8.quantised_layers[1] > 0
    assert abs(int8.accuracy - card.accuracy.test) < 0.05
    assert card.int8.attempts
    assert card.attack_images == 200
    clean, weak, strong = (row.accuracy for row in card.attacks)
    assert clean >= weak >= strong
    assert "each pixel value by up to 8 of 255" in (exported.path / "card.md").read_text()
    assert card.digest == trained.architecture.graph.digest
    assert json.loads((exported.path / "architecture.json").read_text()) == (
        trained.architecture.to_json()
    )
    assert exported.preprocessing == trained.preprocessing


def test_processes_of_all_files_start_at_the_same_time_and_use_the_same_cores(
    trained, digits, origin, tmp_path, monkeypatch, in_process
):
    together, started = threading.Barrier(2, timeout=30.0), []

    def start(process):
        started.append((together.wait(), process.cores))

    monkeypatch.setattr(ModelProcess, "start", start)
    monkeypatch.setattr(export, "cores_of_processes", lambda *_: [(0,)])
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    export_model(trained, digits, ModelFolder(tmp_path / "a"), ExportRequest(FORMATS), origin)
    (first, cores), (second, others) = sorted(started)
    assert (first, second) == (0, 1)
    assert cores == others == (0,)


@pytest.mark.slow
def test_network_of_a_lower_resolution_has_files_for_its_own_input(digits, origin, tmp_path):
    several = replace(load_definition("mobilenet_tiny"), name="mine", resolutions=(0.75, 1.0))
    space = several.adapt(image_size=8, channels=1, classes=10)
    architecture = space.smallest
    assert architecture.graph.input_shape == (1, 6, 6)
    model = TrainedModel(architecture, to_torch(architecture), preprocessing_of(digits, 6))
    own_input = normalised(digits.test, model.preprocessing)
    assert own_input.shape[2:] == (6, 6)
    # The network resizes images of the data set by itself while it is trained.
    whole = normalised(digits.test, preprocessing_of(digits))
    np.testing.assert_allclose(model.logits(own_input), model.logits(whole), atol=1e-6)
    folder = ModelFolder(tmp_path / "jf2a")
    export_model(model, digits, folder, ExportRequest(("torch", "onnx")), origin)
    assert (folder.card.image_size, folder.preprocessing.image_size) == (8, 6)
    verification = verify(folder.path)
    assert [each.status for each in verification.files] == ["verified", "verified"]
    assert verification.script.difference < 1e-4, "run.py resizes as training does"
    loaded = load_model(folder.path, space=space)
    np.testing.assert_array_equal(loaded.logits(own_input), model.logits(own_input))


def test_accuracy_by_class_averages_to_the_accuracy(exported, digits):
    accuracy = exported.card.accuracy
    counts = np.bincount(digits.test.labels)
    weighted = sum(
        accuracy.by_class[name] * count for name, count in zip(digits.classes, counts, strict=True)
    )
    assert weighted / len(digits.test) == pytest.approx(accuracy.test)


def test_card_says_that_tensorrt_does_not_take_the_int8_file(exported, trained, digits):
    model = onnx.load(exported.path / "model-int8.onnx")
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    quantised = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    zero_points = [tensors[node.input[2]] for node in quantised]
    assert {each.dtype for each in zero_points} == {np.dtype(np.uint8)}
    assert any(each.any() for each in zero_points), "TensorRT needs signed ones, all zero"
    assert "which TensorRT does not take" in (exported.path / "card.md").read_text()
    float32 = [file for file in exported.card.files if file.precision == "float32"]
    assert "TensorRT" not in " ".join(_limits(float32, None, digits))


def test_same_export_again_changes_nothing(folder, again):
    before = state(folder)
    again(*FORMATS)
    assert state(folder) == before


def test_network_that_misses_its_limit_is_quantised_again_only_for_a_stricter_one(
    folder, again, monkeypatch
):
    card = folder.card
    worse = card.int8.model_copy(update={"accuracy": card.int8.float_accuracy - 0.1})
    card = card.model_copy(update={"int8": worse})
    monkeypatch.setattr(ModelFolder, "card", property(lambda folder: card))
    monkeypatch.setattr(export, "quantise_within", lambda *_, **__: pytest.fail("quantised again"))
    limit = card.int8.max_drop
    assert again(*FORMATS, max_accuracy_drop=limit) == card
    with pytest.raises(pytest.fail.Exception, match="quantised again"):
        again(*FORMATS, max_accuracy_drop=limit / 2)


@pytest.mark.slow
def test_weights_get_the_bits_that_are_asked_for_and_the_card_names_few_images(
    folder, again, digits, in_process
):
    few = replace(digits, train=digits.train.take(np.arange(9)))
    own_bits = folder.card.int8.weight_bits
    if own_bits == 7:  # Sums of weights of 8 bits overflow in ONNX Runtime here.
        with pytest.raises(IncompleteExportError, match="does not compute what it should"):
            again("onnx-int8", data=few, weight_bits=8)
        return
    for bits in (7, own_bits):
        card = again("onnx-int8", data=few, weight_bits=bits)
        assert [file.format for file in card.files] == ["onnx", "onnx-int8"]
        assert (card.int8.weight_bits, card.int8.calibration_images) == (bits, 9)
        weights = [
            onnx.numpy_helper.to_array(each)
            for each in onnx.load(folder.path / "model-int8.onnx").graph.initializer
            if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
        ]
        assert max(np.abs(each.astype(int)).max() for each in weights) == LARGEST_WEIGHT[bits]
    page = (folder.path / "card.md").read_text()
    assert "calibrated on 9 training images only" in page
    assert "in 10% of new images" in page
    before = state(folder)
    again("onnx-int8")
    assert state(folder) == before, "no bits were asked for"


@pytest.mark.slow
def test_later_format_is_added_and_the_earlier_files_stay(folder, again, in_process):
    earlier, int8 = state(folder), folder.card.int8
    card = again("torch")
    now = state(folder)
    assert now["model-int8.onnx"] == earlier["model-int8.onnx"]
    assert [file.format for file in card.files] == [*FORMATS, "torch"]
    assert all(file.latency is not None for file in card.files)
    assert card.int8 == int8
    assert {each.status for each in verify(folder.path).files} == {"verified"}


def test_other_license_changes_the_descriptions_alone(folder, again, origin):
    earlier = state(folder)
    data = origin.data.model_copy(update={"license": "CC0 1.0"})
    card = again(*FORMATS, origin=replace(origin, data=data))
    assert card.data.license == folder.card.data.license == "CC0 1.0"
    assert "CC0 1.0" in (folder.path / "card.md").read_text()
    folder.require_unchanged()
    now = state(folder)
    assert {name for name in earlier if now[name][1] != earlier[name][1]} <= {
        *("card.json", "card.md", "SHA256SUMS", "benchmark.svg")
    }


def test_statements_of_the_job_change_the_descriptions_alone(folder, again, origin):
    earlier = state(folder)
    page = (folder.path / "card.md").read_text()
    assert all(f"| {name} | not stated |" in page for name in ("intended use", "contact"))
    assert "Origin and labels: not stated" in page
    said = CardSettings(intended_use="Sorts parcels | letters,\nby day.", data_origin="Our belt.")
    card = again(*FORMATS, origin=replace(origin, statements=said))
    assert card.statements == folder.card.statements == said
    page = (folder.path / "card.md").read_text()
    assert "| intended use | Sorts parcels \\| letters, by day. |" in page
    assert "| misuse | not stated |" in page
    assert "Origin and labels: Our belt." in page
    folder.require_unchanged()
    now = state(folder)
    assert {name for name in earlier if now[name][1] != earlier[name][1]} <= {
        *("card.json", "card.md", "SHA256SUMS", "benchmark.svg")
    }


def test_pictures_of_mistakes_are_in_the_card_unless_they_are_switched_off(
    folder, again, trained, digits, origin
):
    logits = trained.pixel_logits(digits.holdout.pixels)
    shown, private = (
        replace(origin, answers=find_answers(logits, digits, pictures=pictures))
        for pictures in (True, False)
    )
    again(*FORMATS, origin=shown)
    page = (folder.path / "card.md").read_text()
    assert "](mistakes.jpg)" in page
    assert f"| **9** | {' | '.join(map(str, shown.answers.matrix[9, :1]))} " in page
    assert "mistakes.jpg" in folder.sums()
    again(*FORMATS, origin=private)
    page = (folder.path / "card.md").read_text()
    assert "mistakes.jpg" not in {*folder.sums(), *(each.name for each in folder.path.iterdir())}
    assert "mistakes.jpg" not in page
    assert f"| {private.answers.mistakes[0].file} |" in page
    folder.require_unchanged()


@pytest.mark.slow
def test_files_of_other_weights_are_removed(folder, again, trained_again, in_process):
    again("torch", model=trained_again)
    assert [file.format for file in folder.card.files] == ["torch"]
    assert not list(folder.path.glob("*.onnx"))
    assert not (folder.path / "run.py").exists()
    assert folder.card.int8 is None
    verify(folder.path)


@pytest.mark.slow
def test_changed_file_is_exported_again(folder, again, in_process):
    good = (folder.path / "model.onnx").read_bytes()
    (folder.path / "model.onnx").write_bytes(good[:-1] + b"\0")
    with pytest.raises(ExportError, match=r"model\.onnx is changed"):
        verify(folder.path)
    again(*FORMATS)
    assert (folder.path / "model.onnx").read_bytes() == good
    folder.require_unchanged()


def test_file_that_computes_something_else_is_an_error_and_leaves_no_file(
    trained, trained_again, digits, origin, tmp_path, monkeypatch, in_process
):
    kind = type(model_format("onnx"))
    write = kind.write
    monkeypatch.setattr(
        kind, "write", lambda self, model, quantised, path: write(
            self, trained_again, quantised, path
        )
    )  # fmt: skip
    folder = ModelFolder(tmp_path / "jf2a")
    with pytest.raises(ExportError, match=r"model\.onnx does not compute what it should"):
        export_model(trained, digits, folder, ExportRequest(["onnx"]), origin)
    assert not folder.path.exists()


def fail(*arguments, **settings):
    raise RuntimeError("out of memory")


def refuse(*arguments, **settings):
    raise RequestError("There are too few images.", remedy="Add images.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("quantise", "The int8 network could not be made: RuntimeError: out of memory"),
        ("refuse", "There are too few images"),
        ("load", r"model-int8\.onnx could not be verified: RuntimeError: out of memory"),
        ("full disk", r"model-int8\.onnx could not be written: No space left on device"),
        ("kill", r"model-int8\.onnx: the process that runs it was ended by SIGKILL"),
    ],
)
def test_float32_does_not_depend_on_int8(
    request, trained, digits, origin, tmp_path, monkeypatch, what, reason
):
    if what != "kill":
        request.getfixturevalue("in_process")
    kind = type(model_format("onnx-int8"))
    load, logits = ModelProcess.load, ModelProcess.logits

    def full_disk(self, model, quantised, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    def load_float32(process, image):
        return fail() if process.model_file.precision == "int8" else load(process, image)

    def kill_int8(process, images):
        if process.model_file.precision == "int8":
            os.kill(process._process.pid, signal.SIGKILL)
            while process._process.is_running:
                time.sleep(0.01)
        return logits(process, images)

    place, name, replacement = {
        "quantise": (export, "quantise_within", fail),
        "refuse": (export, "quantise_within", refuse),
        "full disk": (kind, "write", full_disk),
        "load": (ModelProcess, "load", load_float32),
        "kill": (ModelProcess, "logits", kill_int8),
    }[what]
    monkeypatch.setattr(place, name, replacement)
    folder = ModelFolder(tmp_path / "3f2a")
    with pytest.raises(IncompleteExportError, match=reason) as caught:
        export_model(trained, digits, folder, ExportRequest(["onnx-int8", "onnx"]), origin)
    assert list(caught.value.failed) == ["onnx-int8"]
    assert caught.value.exit_status == 1
    assert caught.value.remedy
    assert [file.format for file in folder.card.files] == ["onnx"]
    assert folder.card.int8 is None
    assert not (folder.path / "model-int8.onnx").exists()
    folder.require_unchanged()


def test_earlier_int8_file_stays_if_it_cannot_be_made_better(folder, again, monkeypatch):
    before = state(folder)
    other_bits = 7 if folder.card.int8.weight_bits == 8 else 8
    monkeypatch.setattr(export, "quantise_within", fail)
    with pytest.raises(IncompleteExportError, match="out of memory"):
        again(*FORMATS, weight_bits=other_bits)
    assert state(folder) == before


@pytest.mark.slow
def test_verified_file_that_cannot_be_timed_is_delivered(
    trained, digits, origin, tmp_path, monkeypatch, in_process
):
    def time(process, *, again):
        raise ExportError("model.onnx: the process that runs it was killed.")

    monkeypatch.setattr(ModelProcess, "time", time)
    folder = ModelFolder(tmp_path / "3f2a")
    with pytest.warns(UserWarning, match="A verified file was not timed"):
        written = export_model(trained, digits, folder, ExportRequest(["onnx"]), origin)
    (file,) = written.files
    assert file.latency is None
    assert "model.onnx was not timed" in " ".join(written.limits)
    assert not (folder.path / "benchmark.svg").exists()
    assert "benchmark.svg" not in (folder.path / "card.md").read_text()
    folder.require_unchanged()


def test_missing_package_is_refused_before_any_work(trained, digits, origin, tmp_path, monkeypatch):
    kind = type(model_format("torch"))
    monkeypatch.setattr(kind, "packages", ("a_package_that_is_missing",))
    monkeypatch.setattr(kind, "extra", "torch")
    folder = ModelFolder(tmp_path / "jf2a")
    with pytest.raises(RequestError, match=r"pip install 'hardware-nas\[torch\]'"):
        export_model(trained, digits, folder, ExportRequest(["onnx", "torch"]), origin)
    assert not folder.path.exists()


def test_unknown_format_is_refused_with_the_names_of_all(trained, digits, origin, tmp_path):
    with pytest.raises(RequestError, match="There is no format 'onx'.*onnx-int8"):
        export_model(
            trained, digits, ModelFolder(tmp_path / "jf2a"), ExportRequest(["onx"]), origin
        )


# Verification later


def test_verification_measures_the_same_accuracy_again(exported):
    verification = verify(exported.path)
    assert verification.no_accuracy == ""
    for recorded, again in zip(exported.card.files, verification.files, strict=True):
        assert again.status == "verified"
        assert again.file.accuracy == recorded.accuracy
    script = verification.script
    assert (script.images, script.kinds) == (32, {}), "they are read as PNG files"
    assert "32 images of the data (it has no image files)" in script_text(script, "")


def change_card(monkeypatch, card: ModelCard, **changes: object) -> None:
    """Let every folder have a card with other fields."""
    changed = card.model_copy(update=changes)
    monkeypatch.setattr(ModelFolder, "card", property(lambda folder: changed))


def test_verification_without_the_data_and_a_runtime_does_what_it_can(
    exported, monkeypatch, in_process
):
    """It uses the images in the folder, and names the command that installs the runtime."""

    def without_onnx(name):
        if name == "onnx":
            raise RequestError("Format 'onnx' needs onnx", remedy="pip install onnx")
        return model_format(name)

    monkeypatch.setattr("nas.deploy.verify.model_format", without_onnx)
    card = exported.card
    change_card(monkeypatch, card, data=card.data.model_copy(update={"source": "moved/photos"}))
    verification = verify(exported.path)
    assert "There is no data at moved/photos" in verification.no_accuracy
    first, second = verification.files
    assert (first.status, first.remedy) == ("not installed", "pip install onnx")
    assert (second.status, second.file.images, second.file.accuracy) == ("verified", 32, None)
    assert verification.no_script == "run.py runs model.onnx, which is not installed."


def test_verification_of_a_file_that_lost_accuracy_is_an_error(exported, monkeypatch, in_process):
    files = exported.card.files
    worse = tuple(file.model_copy(update={"accuracy": file.accuracy - 0.02}) for file in files)
    change_card(monkeypatch, exported.card, files=worse)
    with pytest.raises(ExportError, match="has an accuracy of .* had .* at the export"):
        verify(exported.path)


def test_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="is not an exported model"):
        verify(tmp_path / "nowhere")


# run.py


@pytest.mark.parametrize("name", ["onnx", "tflite", "tflite-int8"])
def test_script_classifies_an_image_without_nas_and_torch(trained, digits, tmp_path, name):
    if name.startswith("tflite"):
        pytest.importorskip("ai_edge_litert")
    model_file = model_format(name)
    images = normalised(digits.train, trained.preprocessing)
    is_int8 = model_file.precision == "int8"
    quantised = quantise_here(trained, images[:100]) if is_int8 else None
    model_file.write(trained, quantised, tmp_path / model_file.file_name)
    (tmp_path / "preprocessing.json").write_text(to_json(trained.preprocessing))
    (tmp_path / "run.py").write_text(run_script(model_file.file_name))
    Image.fromarray(digits.test.pixels[0][:, :, 0]).save(tmp_path / "digit.png")

    hidden = "import sys; sys.modules.update(dict.fromkeys(['nas', 'torch', 'onnx', 'tvm']))\n"
    arguments = [str(tmp_path / "run.py"), str(tmp_path / "digit.png")]
    start = f"runpy.run_path({arguments[0]!r}, run_name='__main__')"
    code = f"{hidden}import runpy; sys.argv = {arguments!r}; {start}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    (logits,) = trained.logits(normalised(digits.test, trained.preprocessing)[:1])
    softmax = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    confidence, label = lines[0].split()
    assert label == digits.classes[softmax.argmax()]
    tolerance = 0.06 if model_file.precision == "float32" else 10
    assert float(confidence.rstrip("%")) == pytest.approx(100 * softmax.max(), abs=tolerance)


# Image files of several kinds


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Return an image folder with files of six kinds, two of them transparent."""
    root = tmp_path_factory.mktemp("photos")
    for label, name in enumerate(("bee", "cow")):
        (root / name).mkdir()
        for index in range(24):
            values = noise(12, 16, 4, seed=100 * label + index)
            grey, rgb = Image.fromarray(values[..., 0]), Image.fromarray(values[..., :3])
            deep = Image.fromarray(values[..., :2].copy().view(np.uint16)[..., 0])
            contents = [
                in_format(Image.fromarray(values), "PNG"),
                in_format(rgb.convert("P"), "PNG", transparency=7),
                in_format(deep, "TIFF"),
                in_format(grey, "BMP"),
                in_format(rgb.resize((120, 90)), "JPEG"),
                with_orientation(values[..., :3], 6, "WEBP"),
            ]
            (root / name / f"{index}.png").write_bytes(contents[index % 6])
    return root


KINDS = {
    "PNG RGBA, alpha": 8,
    "PNG P, alpha": 8,
    "TIFF I;16": 8,
    "BMP L": 8,
    "JPEG RGB, decoded at 1/4": 8,
    "WEBP RGB, EXIF orientation 6": 8,
}


@pytest.fixture(scope="module")
def export_of_photos(photos, origin):
    """Return a function that exports a network for photos on black to a folder."""
    data = load_dataset(photos, image_size=8, background="black", write_cache=False)
    space = load_definition("squeezenet_tiny").adapt(image_size=8, channels=3, classes=2)
    torch.manual_seed(0)
    model = TrainedModel(space.smallest, to_torch(space.smallest), preprocessing_of(data))
    from_photos = origin.data.model_copy(
        update={
            "class_counts": data.part_class_counts,
            "source": str(photos),
            "digest": data.digest,
            "validation_fraction": None,
            "background": "black",
        }
    )

    def to(path: Path) -> ModelFolder:
        folder = ModelFolder(path)
        export_model(
            model, data, folder, ExportRequest(["onnx"]), replace(origin, data=from_photos)
        )
        return folder

    return to


@pytest.fixture(scope="module")
def exported_for_photos(export_of_photos, tmp_path_factory) -> ModelFolder:
    return export_of_photos(tmp_path_factory.mktemp("models") / "3f2a")


@pytest.mark.slow
def test_script_is_verified_with_a_file_of_each_kind_of_image(exported_for_photos):
    folder = exported_for_photos
    script = folder.card.script
    assert script.kinds == KINDS
    assert script.unchecked == ()
    assert 0 < script.images <= 32
    assert script.difference <= 1e-4
    verification = verify(folder.path)
    assert verification.no_accuracy == "", "the images were loaded on the same background"
    assert verification.script == script
    assert script_text(script, "").startswith(
        f"run.py agrees with torch on {script.images} images of the data and on a file of each kind"
    )
    page = (folder.path / "card.md").read_text()
    assert "TIFF I;16: 8 images" in page
    assert "composited on #000000" in page
    (metadata,) = onnx.load(folder.path / "model.onnx").metadata_props
    assert json.loads(metadata.value)["reading"]["background"] == "#000000"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "kind"),
    [
        ("values >> 8).astype(np.uint8)", "values.clip(0, 255)).astype(np.uint8)", "TIFF I;16"),
        ("canvas.paste(image, mask=image)", "canvas.paste(image)", "PNG RGBA, alpha"),
        ("image = image.transpose(turn)", "pass", "WEBP RGB, EXIF orientation 6"),
        ("(size, size), Image.Resampling.BILINEAR", "(size, size), Image.Resampling.NEAREST", ".*"),
    ],
)
def test_script_that_reads_images_otherwise_is_an_error(
    exported_for_photos, tmp_path, right, wrong, kind
):
    folder, text = exported_for_photos.path, run_script("model.onnx")
    assert text.count(right) == 1
    (tmp_path / "run.py").write_text(text.replace(right, wrong))
    shutil.copy(folder / "preprocessing.json", tmp_path)
    samples, onnx_format = ReferenceImages.load(folder / SAMPLES_FILE), model_format("onnx")
    with pytest.raises(ExportError, match=rf"run\.py, most of all for files {kind}, does not"):
        check_script(tmp_path / "run.py", folder / "model.onnx", onnx_format, samples)


@pytest.mark.parametrize(("right", "wrong"), [("", ""), ("BILINEAR", "NEAREST")])
def test_script_finds_out_that_it_reads_images_otherwise(
    exported_for_photos, tmp_path, right, wrong
):
    folder = shutil.copytree(exported_for_photos.path, tmp_path / "copy")
    script = folder / "run.py"
    script.write_text(script.read_text().replace(right, wrong))
    done = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == (right != wrong), done.stderr
    assert "have the answers of the export" in done.stdout + done.stderr


@pytest.mark.slow
def test_wrong_script_is_not_shipped(export_of_photos, tmp_path, monkeypatch, in_process):
    monkeypatch.setattr(export, "run_script", lambda *_: "raise SystemExit(9)")
    with pytest.raises(
        ExportError, match=r"run\.py ended with status 9 .* the same export adds run\.py"
    ):
        export_of_photos(tmp_path / "3f2a")
    folder = ModelFolder(tmp_path / "3f2a")
    assert (folder.path / "model.onnx").exists()
    assert not (folder.path / "run.py").exists()
    assert folder.card.script is None
    verification = verify(folder.path)
    assert (verification.script, verification.no_script) == (None, "The folder has no run.py.")
    monkeypatch.setattr(export, "run_script", run_script)
    assert export_of_photos(folder.path).card.script is not None
    assert "run.py" in folder.sums()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "content"), [("run.py", None), ("card.md", b"other")])
def test_missing_or_changed_description_is_there_after_the_next_export(
    folder, again, in_process, name, content
):
    names, files = {*folder.sums()}, folder.card.files
    (folder.path / name).unlink()
    if content:
        (folder.path / name).write_bytes(content)
    card = again("onnx-int8")
    assert {*folder.sums()} == names
    assert {each.format for each in card.files} == {each.format for each in files}
    assert card.script is not None
    folder.require_unchanged()
