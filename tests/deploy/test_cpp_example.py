"""The C++ programs: they read images as `run.py` does, and compute what it computes.

They need CMake, g++, libpng and libjpeg; NAS_REQUIRE_CPP turns a missing one from a skip into an
error. `.ci/onnxruntime FOLDER` makes the folder that `NAS_ONNXRUNTIME=FOLDER` names.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.deploy.cpp_example import write_example
from nas.deploy.export import export_model
from nas.deploy.folder import ModelFolder
from nas.deploy.formats import model_format
from nas.deploy.model import TrainedModel
from nas.deploy.requests import ExportRequest
from nas.deploy.scripts import run_script
from nas.files.documents import to_json
from nas.latency import LatencyTable
from nas.quantisation.post_training import quantise
from nas.run.model_card import Threshold
from tests.data.image_files import image_files, in_format, noise
from tests.deploy.formats.models import digits_images, digits_model
from tests.deploy.formats.test_tvm import write_table
from tests.deploy.test_scripts import SIZE, imported, preprocessing, write_script

PRINT_INPUT = """
#include "classify.h"
int main(int, char** arguments) {
    const std::vector<float> values = network_input(arguments[1]);
    std::fwrite(values.data(), sizeof(float), values.size(), stdout);
}
"""

NOT_READ = re.compile(
    # Other formats, and what the script does not read either.
    r"(AVIF|BMP|GIF|HEIF|TIFF|WEBP|animated (GIF|WEBP|TIFF)|no image|half an image)\b.*"
    r"|(JPEG|MPO) of mode CMYK|photo of \d+ pixels, CMYK|PPM of mode (1|F|I|I;16)"
)
"""Files of `image_files` that the program refuses."""


@pytest.fixture(scope="module", autouse=True)
def _compiler():
    """Skip the tests, or fail, where nothing can be compiled."""
    headers = "#include <cstdio>\n#include <png.h>\n#include <jpeglib.h>\n"
    command = 'command -v cmake && g++ -E -x c++ - <<<"$0"'
    done = subprocess.run(["bash", "-c", command, headers], capture_output=True, check=False)
    if done.returncode:
        missing = "needs CMake, g++, libpng and libjpeg"
        (pytest.fail if os.environ.get("NAS_REQUIRE_CPP") == "1" else pytest.skip)(missing)


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("channels", "image_size", "resize"),
    [(3, 6, "cover"), (1, SIZE, "cover"), (3, SIZE, "contain"), (1, SIZE, "contain")],
)
def test_program_reads_every_file_as_the_script_does(tmp_path, channels, image_size, resize):
    how = preprocessing(channels, image_size, resize)
    script, program = imported(write_script(tmp_path, how)), tmp_path / "input"
    values_of = json.loads(to_json(how))
    write_example(tmp_path, ["onnx"], how)
    (tmp_path / "input.cpp").write_text(PRINT_INPUT)
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined"]
    options = ["-DWITH_PNG", "-DWITH_JPEG", "-o", program, "-lpng", "-ljpeg"]
    subprocess.run([*command, tmp_path / "input.cpp", *options], check=True)
    refused = set()
    for name, content in image_files().items():
        (tmp_path / "image").write_bytes(content)
        done = subprocess.run([program, tmp_path / "image"], capture_output=True, check=False)
        if done.returncode:
            assert done.stderr.startswith(f"{tmp_path / 'image'}: ".encode()), name
            refused.add(name)
            continue
        values = np.frombuffer(done.stdout, np.float32).reshape(image_size, image_size, channels)
        expected = script.network_input(tmp_path / "image", values_of)[0].transpose(1, 2, 0)
        # Where Pillow begins with the columns, some bytes differ by 1.
        tolerance = 1.001 / 255 / 0.2 if re.search(r"orientation [5678]$", name) else 1e-6
        np.testing.assert_allclose(values, expected, 0, tolerance, err_msg=name)
    assert refused == {name for name in image_files() if NOT_READ.fullmatch(name)}
    assert len(image_files()) - len(refused) > 50


def test_program_takes_numbers_that_are_none_for_no_answer(tmp_path):
    write_example(tmp_path, ["onnx"], preprocessing(3))
    (tmp_path / "answer.cpp").write_text(
        '#include "classify.h"\nint main() { print_answer({1, std::nanf(""), 0}); }\n'
    )
    program = tmp_path / "answer"
    subprocess.run(["g++", "-std=c++17", tmp_path / "answer.cpp", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the network's answer has values that are not finite" in done.stderr


# The programs, compiled as a user compiles them


IMAGES = ("photo.jpg", "colours.png", "grey.pgm")


def write_files(folder: Path, formats: Sequence[str], table: LatencyTable | None = None) -> None:
    """Write a model folder with files of some formats, `run.py`, the example and `IMAGES`."""
    network = digits_model()
    how = network.preprocessing.model_copy(update={"min_confidence": 0.5})
    model = TrainedModel(network.architecture, network.network, how, table)
    quantised = quantise(model.graph, model.weights, digits_images(64))
    for name in formats:
        each = model_format(name)
        int8 = quantised if each.precision == "int8" else None
        each.write(model, int8, folder / each.file_name)
    write_example(folder, formats, how)
    (folder / "preprocessing.json").write_text(to_json(how))
    (folder / "run.py").write_text(run_script(model_format(formats[0]).file_name))
    photo = noise(40, 60, 3).astype(np.int64).cumsum(0).cumsum(1) // 64 % 256
    image = Image.fromarray(photo.astype(np.uint8))
    (folder / "photo.jpg").write_bytes(in_format(image, "JPEG"))
    (folder / "colours.png").write_bytes(in_format(image.convert("RGBA").rotate(30), "PNG"))
    (folder / "grey.pgm").write_bytes(in_format(image.convert("L"), "PPM"))


def build(folder: Path, name: str, packages: Path) -> Path:
    """Return the program for a runtime, compiled with the packages for C++ in a folder."""
    options = [f"-DPython3_EXECUTABLE={sys.executable}", f"-DCMAKE_PREFIX_PATH={packages}"]
    target = folder / "build"
    for command in (["-S", folder, "-B", target, *options], ["--build", target]):
        done = subprocess.run(["cmake", *command], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
    return target / f"classify_{name}"


def run(*command: str | Path) -> str:
    environment = {**os.environ, "TVM_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def assert_equals_script(folder: Path, program: Path, name: str, script_runs: str = "") -> None:
    """Check that the program prints for the images what `run.py` prints, of another format."""
    each = model_format(name)
    model, paths = folder / each.file_name, [folder / image for image in IMAGES]
    script_model = folder / model_format(script_runs or name).file_name
    python = [sys.executable, folder / "run.py", "--model", script_model]
    expected = np.array([result["logits"] for result in json.loads(run(*python, *paths, "--json"))])
    values = [run(program, model, path, "--logits").split() for path in paths]
    tolerance = each.tolerance * expected.std()
    np.testing.assert_allclose(np.array(values, float), expected, 0, tolerance)
    if each.precision == "float32":
        answers = [run(program, model, path) for path in paths]
        assert answers[0] == run(*python, paths[0])
        assert len(set(answers)) == 3


@pytest.mark.slow
def test_programs_of_tvm_and_of_c_print_what_the_script_prints(tmp_path):
    write_files(tmp_path, ["tvm", "c"], write_table(tmp_path / "table.jsonl", digits_model()))
    program = build(tmp_path, "tvm", tmp_path)
    assert_equals_script(tmp_path, program, "tvm")
    assert_equals_script(tmp_path, program.with_name("classify_c"), "c", script_runs="tvm")


@pytest.mark.slow
def test_litert_program_prints_what_the_script_prints(tmp_path):
    write_files(tmp_path, ["tflite", "tflite-int8"])
    headers = tmp_path / "packages/include/litert/c"
    headers.mkdir(parents=True)
    declarations = (Path(__file__).parent / "litert_c.h").read_text()
    for name in ("common", "compiled_model", "environment", "model", "options", "tensor_buffer"):
        (headers / f"litert_{name}.h").write_text(declarations)
    program = build(tmp_path, "tflite", tmp_path / "packages")
    for name in ("tflite", "tflite-int8"):
        assert_equals_script(tmp_path, program, name)


@pytest.mark.slow
@pytest.mark.skipif(
    "NAS_ONNXRUNTIME" not in os.environ, reason="needs the folder that .ci/onnxruntime makes"
)
def test_onnx_program_prints_what_the_script_prints(tmp_path):
    write_files(tmp_path, ["onnx", "onnx-int8"])
    program = build(tmp_path, "onnx", Path(os.environ["NAS_ONNXRUNTIME"]))
    for name in ("onnx", "onnx-int8"):
        assert_equals_script(tmp_path, program, name)


def test_missing_headers_are_an_error_that_says_what_to_install(tmp_path):
    write_example(tmp_path, ["tflite"], preprocessing(3))
    command = ["cmake", "-S", tmp_path, "-B", tmp_path / "build"]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 1
    words = " ".join(done.stderr.decode().split())
    assert "classify_tflite needs what was not found" in words
    assert "Install ai-edge-litert with pip" in words


def test_class_names_survive_as_literals(tmp_path):
    names = ('a "b"', "c\\d", "e\n7", "f??/", "zéro")
    how = preprocessing(3).model_copy(update={"classes": names})
    write_example(tmp_path, ["onnx"], how)
    program = '#include "preprocessing.h"\n#include <cstdio>\n'
    program += "int main() { for (auto name : CLASSES) std::puts(name); }"
    (tmp_path / "names.cpp").write_text(program)
    subprocess.run(
        ["g++", "-std=c++17", "-o", tmp_path / "names", tmp_path / "names.cpp"], check=True
    )
    assert run(tmp_path / "names") == "".join(f"{name}\n" for name in names)


# The export


@pytest.mark.slow
def test_export_writes_the_example_and_later_ones_renew_it(trained, digits, origin, tmp_path):
    folder = ModelFolder(tmp_path / "jf2a")
    export_model(trained, digits, folder, ExportRequest(["onnx"], example="cpp"), origin)
    folder.require_unchanged()
    assert {"classify.h", "classify_onnx.cpp", "CMakeLists.txt"} <= folder.sums().keys()
    assert "MIN_CONFIDENCE = 0;" in (folder.path / "preprocessing.h").read_text()
    how = trained.preprocessing.model_copy(update={"min_confidence": 0.25})
    careful = TrainedModel(trained.architecture, trained.network, how)
    threshold = Threshold(
        min_confidence=0.25, min_accuracy=None, images=9, answered=9, right=9, unknown=0,
        unknown_answered=0,
    )  # fmt: skip
    origin = replace(origin, threshold=threshold)
    export_model(careful, digits, folder, ExportRequest(["onnx"]), origin)
    assert "MIN_CONFIDENCE = 0.25;" in (folder.path / "preprocessing.h").read_text()
    export_model(careful, digits, folder, ExportRequest(["tflite"]), origin)
    assert {path.name for path in folder.path.glob("*.cpp")} == {
        *("classify_onnx.cpp", "classify_tflite.cpp")
    }
    folder.require_unchanged()
