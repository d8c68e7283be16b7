"""`run.py`: it reads every image file as training does, and works on every terminal."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import PIL
import pytest
from packaging.requirements import Requirement
from PIL import Image
from safetensors.numpy import load_file, save_file

from nas.data import Images, decoding
from nas.data.image_reading import RULES
from nas.data.sources import Sample
from nas.deploy.formats import format_names, model_format
from nas.deploy.model import (
    TrainedModel,
    image_reading,
    normalised,
    preprocessing_of,
    preprocessing_steps,
)
from nas.deploy.scripts import run_script, script_format, script_logits, script_requirements
from nas.errors import ExportError
from nas.files.documents import to_json
from nas.onnx_model import IR_VERSION, OPSET
from nas.plans.cascade_template import classify_image
from nas.run.model_card import Preprocessing
from tests.data.image_files import image_files, in_format, noise
from tests.deploy.example_model import model_with_script
from tests.small_disk import mounted, rerun_where_mounting_is_allowed

SIZE = 8
BACKGROUND = "#3060c0"


def preprocessing(channels: int, image_size: int = SIZE, resize: str = "cover") -> Preprocessing:
    return Preprocessing(
        schema=3,
        reading=image_reading(SIZE, BACKGROUND, resize),
        image_size=image_size,
        channels=channels,
        mean=(0.4, 0.5, 0.6)[:channels],
        std=(0.2, 0.3, 0.25)[:channels],
        classes=("zéro", "一", "二"),
        input_name="image",
        output_name="logits",
    )


def write_script(folder: Path, how: Preprocessing) -> Path:
    """Write `run.py` and its preprocessing, without a network; return its path."""
    (folder / "preprocessing.json").write_text(to_json(how), encoding="utf-8")
    (folder / "run.py").write_text(run_script("model.onnx"), encoding="utf-8")
    return folder / "run.py"


def imported(script: Path):
    """Return the script as a module of its own."""
    spec = importlib.util.spec_from_file_location("run_of_a_model", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("resize", ["cover", "contain"])
def test_script_reads_every_file_as_training_does(tmp_path, resize):
    how = preprocessing(3, 6, resize)
    reading = decoding._Reading(SIZE, BACKGROUND, resize)
    script, values = imported(write_script(tmp_path, how)), json.loads(to_json(how))
    path = tmp_path / "image"
    refused = []
    for name, content in image_files().items():
        path.write_bytes(content)
        in_training = decoding._decode_image(Sample("train", name, path, 0), reading)
        if isinstance(in_training, str):
            refused.append(name)
            with pytest.raises(script.UnreadableImageError) as error:
                script.network_input(path, values)
            assert str(error.value) == in_training, name
            continue
        pixels = in_training.pixels
        pixels = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels
        expected = normalised(Images(pixels[None], np.zeros(1, np.int64)), how)
        own = script.network_input(path, values)
        assert own.dtype == np.float32
        np.testing.assert_array_equal(own, expected, name)
    assert len(refused) == 6
    assert len(image_files()) > 120


def test_script_reads_json_with_a_byte_order_mark(tmp_path):
    how = preprocessing(3)
    script = imported(write_script(tmp_path, how))
    (tmp_path / "preprocessing.json").write_text(to_json(how), encoding="utf-8-sig")
    assert script.read_json("preprocessing.json") == json.loads(to_json(how))
    (tmp_path / "preprocessing.json").write_text(to_json(how), encoding="utf-16")
    with pytest.raises(SystemExit, match="it is text in UTF-16"):
        script.read_json("preprocessing.json")


def test_script_gives_a_grey_network_grey_pixels(tmp_path):
    how = preprocessing(1)
    script = imported(write_script(tmp_path, how))
    pixels = noise(SIZE, SIZE, 3)
    (tmp_path / "colour").write_bytes(in_format(Image.fromarray(pixels), "PNG"))
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    values = script.network_input(tmp_path / "colour", json.loads(to_json(how)))
    np.testing.assert_allclose(values[0, 0] * 0.2 + 0.4, luma / 255, atol=0.51 / 255)


def test_specification_states_what_the_code_does():
    how = preprocessing(3)
    stated = how.reading.model_dump()
    assert {name: stated[name] for name in RULES} == RULES
    assert set(stated) - set(RULES) == {"formats", "background", "resize", "decoded_size"}
    assert json.loads(how.embedded)["reading"] == json.loads(how.reading.model_dump_json())
    text = " ".join(preprocessing_steps(preprocessing(3, 6)))
    for each in ("EXIF", "upper 8", BACKGROUND, "bilinear", "antialiasing", "16 pixels", "6 x 6"):
        assert each in text


# The whole script, run as a user does


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    """Return the script of a network of three classes whose names are not ASCII."""
    from nas.space import load_space
    from nas.torch_network import to_torch

    folder = tmp_path_factory.mktemp("model")
    architecture = load_space("squeezenet_tiny", image_size=SIZE, channels=3, classes=3).smallest
    model = TrainedModel(architecture, to_torch(architecture), preprocessing(3))
    model_format("onnx").write(model, None, folder / "model.onnx")
    for name in ("PNG of mode RGBA", "JPEG of mode RGB", "TIFF of mode F"):
        (folder / name.split()[0]).write_bytes(image_files()[name])
    return write_script(folder, model.preprocessing)


@pytest.fixture
def copy(script, tmp_path) -> Path:
    """Return the script in a copy of its folder."""
    return shutil.copytree(script.parent, tmp_path / "copy") / script.name


@pytest.fixture
def run(monkeypatch, capfd):
    """Return a function that runs a script in this process: status, output and errors."""

    def run(script: Path, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(script.parent)
        monkeypatch.setattr(sys, "argv", [script.name, *arguments])
        try:
            status = imported(script).main()
        except SystemExit as end:
            print(end.code, file=sys.stderr)
            status = 1
        return status, *capfd.readouterr()

    return run


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_script_prints_class_names_on_every_terminal(script, encoding):
    done = subprocess.run(
        [sys.executable, script.name, "PNG"],
        cwd=script.parent,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode(encoding).splitlines()
    expected = [
        name.encode(encoding, "backslashreplace").decode(encoding) for name in ("zéro", "一", "二")
    ]
    assert sorted(line.split()[1] for line in lines) == sorted(expected)


def test_script_goes_on_after_an_image_that_it_does_not_read(script, run):
    status, output, errors = run(script, "PNG", "TIFF", "JPEG")
    assert status == 1
    assert errors.startswith("TIFF: pixels of 32 bits a channel")
    assert output.count("%") == 6
    results = script_logits(script, [], ["TIFF", "PNG"], script.parent)
    assert results[0].startswith("pixels of 32 bits a channel")
    assert len(results[1]) == 3


def test_script_is_unsure_below_the_confidence_of_its_folder(copy, run):
    (result,) = json.loads(run(copy, "PNG", "--json")[1])
    exponentials = np.exp(result["logits"])
    confidence = exponentials.max() / exponentials.sum()
    assert result["unsure"] is False
    for threshold, expected in ((confidence - 1e-3, False), (confidence + 1e-3, True)):
        how = preprocessing(3).model_copy(update={"min_confidence": float(threshold)})
        copy.with_name("preprocessing.json").write_text(to_json(how))
        (result,) = json.loads(run(copy, "PNG", "--json")[1])
        assert result["unsure"] is expected
        assert (run(copy, "PNG")[1].splitlines() == ["unsure"]) is expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_no_answer(copy, capsys, value):
    script, how = imported(copy), json.loads(to_json(preprocessing(3)))
    images, log = [str(copy.with_name("PNG"))], copy.with_name("log")
    for as_json in (False, True):
        own = script.ImageLog(log, "ab", False)
        answers = (images, copy, lambda _: np.array([1, value, 0], np.float32), how, as_json, own)
        assert script.classify(*answers) == 1
    out, error = capsys.readouterr()
    reason = "the network's answer has values that are not finite"
    assert json.loads(out) == [{"image": images[0], "error": reason}]
    assert error == f"{images[0]}: {reason}\n"
    assert [json.loads(line)["error"] for line in log.read_text().splitlines()] == [reason] * 2
    stage = {"preprocessing": how, "path": copy, "network": "", "min_confidence": 0.5}
    stage["outputs_of"] = lambda _: [np.array([[1, value, 0]], np.float32)]
    assert classify_image(images[0], [stage])["error"] == reason


@pytest.mark.parametrize("options", [[], ["--json"], ["--log", "log"]])
@pytest.mark.parametrize("buffering", ["", "1"])
def test_script_ends_quietly_if_nobody_reads_its_output(copy, options, buffering):
    copy.with_name("reference.json").write_text('{"weights_digest": "ab"}')
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, copy, *["PNG"] * 3, *options],
        cwd=copy.parent,
        env={**os.environ, "PYTHONUNBUFFERED": buffering},
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("log", ["nowhere/log", ".", "/dev/full"])
def test_answers_do_without_a_log_that_cannot_be_written(copy, run, log):
    if log == "/dev/full" and not Path(log).exists():
        pytest.skip("the system has no device that is always full")
    copy.with_name("reference.json").write_text('{"weights_digest": "ab"}')
    for options in ((), ("--json",)):
        plain = run(copy, "PNG", "TIFF", "JPEG", *options)
        logged = run(copy, "PNG", "TIFF", "JPEG", *options, "--log", log)
        assert logged[:2] == plain[:2]
        (line,) = set(logged[2].splitlines()) - set(plain[2].splitlines())
        assert line.startswith(f"{Path(log)}: the log cannot be written (")
        assert len(logged[2].splitlines()) == len(plain[2].splitlines()) + 1


def test_log_does_not_need_anyone_who_reads_the_answers(copy):
    copy.with_name("reference.json").write_text('{"weights_digest": "ab"}')
    read, write = os.pipe()
    os.close(read)
    for options in ((), ("--json",)):
        done = subprocess.run(
            [sys.executable, copy.name, "PNG", "JPEG", "--log", "log", *options],
            cwd=copy.parent,
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert done.returncode
        log = copy.with_name("log")
        assert '"class"' in log.read_text()
        log.unlink()
    os.close(write)


def test_log_says_why_an_image_is_not_read(copy, run):
    copy.with_name("reference.json").write_text('{"weights_digest": "ab"}')
    for options in ((), ("--json",)):
        run(copy, "TIFF", "PNG", "--log", "log", *options)
    lines = [json.loads(line) for line in copy.with_name("log").read_text().splitlines()]
    assert [sorted(line) for line in lines] == [
        ["error", "model", "time"],
        ["brightness", "class", "confidence", "contrast", "model", "sharpness", "time"],
    ] * 2
    assert lines[0]["error"].startswith("pixels of 32 bits")


def test_script_that_does_not_run_is_an_error_with_its_reason(script, tmp_path):
    with pytest.raises(ExportError, match=r"run\.py ended with status 1 and wrote: .*missing"):
        script_logits(script, ["--model", "missing.onnx"], ["PNG"], script.parent)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("model.onnx", lambda content: LFS_POINTER, "a pointer of Git LFS"),
        ("model.onnx", lambda content: content[: len(content) // 2], "cannot be read"),
        ("preprocessing.json", lambda content: b"", "is empty"),
        ("preprocessing.json", lambda content: content[: len(content) // 2], "cannot be read"),
        (
            "preprocessing.json",
            lambda content: content.replace(b'"cover"', b'"stretch"'),
            "resize 'stretch'; expected cover or contain",
        ),
        # The network does not take an image of this size.
        (
            "preprocessing.json",
            lambda content: content.replace(b'"image_size": 8', b'"image_size": 6'),
            "model.onnx: it cannot be read",
        ),
    ],
)
def test_script_names_a_file_that_it_cannot_use_in_one_line(copy, run, name, change, reason):
    path = copy.with_name(name)
    content = path.read_bytes()
    path.write_bytes(change(content))
    assert path.read_bytes() != content
    status, output, errors = run(copy, "PNG")
    (line,) = errors.splitlines()
    assert (status, output) == (1, "")
    assert name in line or "model.onnx" in line
    assert reason in line


def test_script_does_not_load_a_library_that_ends_early(script, run, tmp_path):
    library = Path(importlib.util.find_spec("numpy.random._pcg64").origin)
    if library.read_bytes()[:4] != b"\x7fELF":
        pytest.skip("the system has libraries of another kind")
    path = tmp_path / "model.so"
    path.write_bytes(library.read_bytes()[:-1000])
    status, _, errors = run(script, "PNG", "--model", str(path))
    assert status == 1
    assert errors.startswith(f"{path}: it is cut: {path.stat().st_size} of at least ")


def test_library_on_a_disk_from_which_nothing_may_be_run_is_named_as_such(
    script, run, tmp_path, request
):
    library = Path(importlib.util.find_spec("numpy.random._pcg64").origin)
    if rerun_where_mounting_is_allowed(request, tmp_path):
        return
    path = tmp_path / "model.so"
    with mounted(tmp_path, "size=32m,noexec"):
        shutil.copy(library, path)
        status, _, errors = run(script, "PNG", "--model", str(path))
        assert status == 1
        assert errors.startswith(f"{path}: nothing may be run from its disk")
        with pytest.raises(ExportError, match=r"nothing may be run from its disk") as refused:
            model_format("tvm").open(path)
        assert refused.value.remedy == "Copy the model to another disk."


def test_script_runs_the_first_format_that_it_can():
    assert script_format(["coreml", "onnx-int8", "onnx"]) == "onnx-int8"
    assert script_format(["coreml"]) is None


def test_script_refuses_a_file_of_another_kind(script, run):
    status, _, errors = run(script, "PNG", "--model", "model.pte")
    assert (status, errors.rstrip()) == (
        1,
        "model.pte: expected a file with the suffix .onnx, .tflite, .so",
    )


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> Path:
    """Return the script of a folder with the card and the images of its export."""
    return model_with_script(tmp_path_factory.mktemp("checked") / "jc80").path / "run.py"


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("labels", lambda values: values, "model.onnx: 32 of 32 images have the answers"),
        ("logits", lambda values: values + 0.1, "model.onnx: 0 of 32 images"),
        ("logits", lambda values: values * np.nan, "model.onnx: 0 of 32 images"),
        ("logits", lambda values: values[:, :-1], "model.onnx: 0 of 32 images"),
        ("pixels", lambda values: np.concatenate([255 - values[:1], values[1:]]), ": 31 of 32"),
        (
            "file_kinds",
            lambda values: np.frombuffer(b'[["JPEG L", 9]]', np.uint8),
            "images of the data (JPEG L) are not read here: not an image in one of the formats",
        ),
    ],
)
def test_script_compares_its_answers_with_those_of_the_export(
    checked, run, tmp_path, name, change, expected
):
    script = shutil.copytree(checked.parent, tmp_path / "copy") / checked.name
    samples = script.with_name("verification.safetensors")
    tensors = load_file(samples)
    file = {"file_0": np.frombuffer(b"no JPEG", np.uint8)}
    save_file({**tensors, **file, name: change(tensors[name]).copy()}, samples)
    status, output, errors = run(script, "--check")
    assert expected in output + errors
    assert status == (name != "labels")


def test_script_and_its_check_name_a_pillow_that_is_too_old(checked, run, monkeypatch):
    monkeypatch.delattr(Image.Image, "has_transparency_data")  # As before Pillow 10.1.
    status, output, errors = run(checked, "--check")
    assert (status, output) == (1, "")
    assert errors.startswith("images are not read here: AttributeError: ")
    monkeypatch.setattr(PIL, "__version__", "9.4.0")
    for arguments in (("--check",), ("image.png",)):
        assert run(checked, *arguments) == (
            1,
            "",
            "Pillow 9.4 is here; expected 10.1 or later. Install a newer Pillow.\n",
        )


def test_check_sees_an_image_that_is_read_otherwise(checked, run, monkeypatch):
    convert = Image.Image.convert
    monkeypatch.setattr(
        Image.Image, "convert", lambda *own: convert(*own).point(lambda value: value // 2)
    )
    status, output, errors = run(checked, "--check")
    assert (status, output) == (1, "")
    assert "a PNG has other pixels" in errors


def test_versions_that_a_device_needs_are_those_of_this_package():
    """What runs the files here is what is known to run them."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    own = [*project["dependencies"], *project["optional-dependencies"]["tflite"]]
    own = {Requirement(each).name: Requirement(each).specifier for each in own}
    texts = {*chain.from_iterable(map(script_requirements, format_names()))}
    needed = [Requirement(each) for each in texts]
    assert {each.name for each in needed} == {
        *("onnxruntime", "ai-edge-litert", "apache-tvm", "apache-tvm-ffi", "numpy", "pillow")
    }
    for each in needed:
        if each.name not in ("onnxruntime", "numpy"):  # Older ones can run the files, too.
            assert each.specifier == own[each.name], each.name
    # The oldest release that reads the format of ONNX files, by its own table of versions.
    assert (IR_VERSION, OPSET) == (8, 17)
    assert "onnxruntime>=1.12" in script_requirements("onnx")


def test_script_checks_a_file_of_int8_by_its_own_logits(checked, run, tmp_path):
    script = shutil.copytree(checked.parent, tmp_path / "copy") / checked.name
    samples, card = (script.with_name(each) for each in ("verification.safetensors", "card.json"))
    tensors, content = load_file(samples), json.loads(card.read_text())
    content["files"][0]["precision"] = "int8"
    card.write_text(json.dumps(content))
    for wrong, expected in ((1, 0), (2, 1)):  # One image in 32 may be far off.
        logits = tensors["logits"].copy()
        logits[:wrong] += 1
        save_file({**tensors, "logits": logits * 0, "int8_logits": logits}, samples)
        assert run(script, "--check")[0] == expected


def test_script_says_what_it_cannot_check(checked, run, tmp_path):
    script = shutil.copytree(checked.parent, tmp_path / "copy") / checked.name
    for arguments in ((), ("PNG", "--check")):
        assert "expected images, or --check without them" in run(script, *arguments)[2]
    assert "--log-paths needs --log" in run(script, "PNG", "--log-paths")[2]
    shutil.copyfile(script.with_name("model.onnx"), tmp_path / "other.onnx")
    other = str(tmp_path / "other.onnx")
    assert run(script, "--check", "--model", other)[1:] == (
        "",
        f"{other}: expected a file that the export compared: model.onnx\n",
    )
    log = ("PNG", "--log", str(tmp_path / "log"), "--model", other)
    assert "--log needs a file of this folder" in run(script, *log)[2]
    script.with_name("verification.safetensors").write_bytes(b"")
    assert "verification.safetensors: it is empty" in run(script, "--check")[2]


def test_dataset_passes_its_background_and_borders_on(tmp_path, monkeypatch):
    from nas.data import load_dataset

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("bee", "cow"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(5):
            content = in_format(Image.new("RGBA", (SIZE, 4), (index, 0, 0, 255 * index)), "PNG")
            (tmp_path / "images" / name / f"{index}.png").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_dataset(
            tmp_path / "images", image_size=SIZE, background=BACKGROUND, resize="contain"
        )
    colours = data.train.pixels[:, :, 0].tolist()
    behind = [0x30, 0x60, 0xC0]
    assert all(each[:2] == each[6:] == [behind] * 2 for each in colours)
    assert {each[3][2] for each in colours} <= {behind[2], 0}
    reading = preprocessing_of(data).reading
    assert (reading.background, reading.resize) == (BACKGROUND, "contain")
    text = " ".join(preprocessing_steps(preprocessing_of(data)))
    assert "longer side has 8 pixels" in text
    assert "PIL.ImageOps.pad" in text
