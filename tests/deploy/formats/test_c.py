"""Object files for C programs against torch, with the schedules of a latency table."""

from __future__ import annotations

import re
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from nas.data.image_reading import normalise, open_image, read_pixels
from nas.deploy.cpp_example import write_source
from nas.deploy.formats import model_format
from nas.deploy.formats.c import compiler_for
from nas.deploy.formats.c_model import SOURCES
from nas.deploy.model import TrainedModel, image_reading
from nas.errors import RequestError
from nas.run.model_card import Preprocessing
from tests.deploy.formats.models import (
    assert_computes_the_same,
    defined_symbols,
    digits_images,
    every_op_model,
    write,
)
from tests.deploy.formats.test_tvm import model_with_table, write_table
from tests.small_disk import mounted, rerun_where_mounting_is_allowed

C = model_format("c")


def written(model: TrainedModel, folder: Path) -> Path:
    """Write a model into a new folder, and return the path of its file."""
    (folder / "model").mkdir(parents=True)
    return write(C, model, folder / "model")


def build(folder: Path, *command: object) -> None:
    subprocess.run([*compiler_for("cpu"), *map(str, command)], cwd=folder, check=True)


def test_file_of_every_op_computes_what_torch_computes(tmp_path):
    every_op = every_op_model()
    table = write_table(tmp_path / "table.jsonl", every_op)
    model = TrainedModel(None, every_op.network, every_op.preprocessing, table)
    loaded = C.open(written(model, tmp_path))
    assert_computes_the_same(loaded, model, digits_images(), C.tolerance)
    image = digits_images()[:1]
    assert loaded.runner(image)() == 0
    seconds = loaded.evaluator(image)(2, 3)
    assert len(seconds) == 3
    assert min(seconds) > 0
    assert C.versions == {}


def test_program_needs_the_c_library_alone_and_names_the_class_of_raw_pixels(tmp_path):
    model = model_with_table("mobilenet_tiny", tmp_path)
    path = written(model, tmp_path)
    build(path.parent, "-nostdlib", "-shared", "-Wl,--no-undefined", path.name, "-lc", "-lm")
    strict = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
    build(path.parent, "-std=c11", *strict, "example.c", path.name, "-o", "example")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    answers = [
        subprocess.run(path.parent / "example", input=image.tobytes(), stdout=-1, check=True).stdout
        for image in pixels
    ]
    classes = [model.preprocessing.classes[at] for at in model.pixel_logits(pixels).argmax(1)]
    assert [answer.decode().strip() for answer in answers] == classes
    short = subprocess.run(path.parent / "example", input=b"\0" * 63, capture_output=True)
    assert (short.returncode, short.stderr) == (1, b"expected an image of 64 bytes\n")


def test_example_takes_numbers_that_are_none_for_no_answer(tmp_path):
    path = written(model_with_table("mobilenet_tiny", tmp_path), tmp_path)
    header = path.with_name("model.h")
    own = "static int run(const float *image, float *logits, void *workspace) {\n"
    own += "    (void)image, (void)workspace;\n    logits[3] = 0.0f / 0.0f;\n    return 0;\n}\n"
    text = re.sub(r"#define MODEL_RUN \w+", f"{own}#define MODEL_RUN run", header.read_text())
    header.write_text(text)
    build(path.parent, "-std=c11", "example.c", path.name, "-o", "example", "-lm")
    done = subprocess.run(path.parent / "example", input=bytes(64), capture_output=True)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"the network's answer has values that are not finite\n"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, TrainedModel]:
    """Return two networks, and the first one with other weights, by the paths of their files."""
    files = {}
    for space, factor in (("mobilenet_tiny", 1), ("squeezenet_tiny", 1), ("mobilenet_tiny", 0.5)):
        folder = tmp_path_factory.mktemp(space)
        model = model_with_table(space, folder)
        network = deepcopy(model.network)
        with torch.no_grad():
            for each in network.parameters():
                each.mul_(factor)
        model = TrainedModel(model.architecture, network, model.preprocessing, model.table)
        files[written(model, folder)] = model
    return files


def name_of(path: Path) -> str:
    (name,) = re.findall(r"int (\w+)_run\(", path.with_name("model.h").read_text())
    return name


@pytest.mark.parametrize("links", ["objects", "libraries"])
def test_program_has_several_networks_and_two_trainings_of_one(three, links, tmp_path):
    """The linker takes the first function of a name that it finds in a shared library."""
    image = digits_images()[:1]
    names = [name_of(path) for path in three]
    assert len(set(names)) == 3
    program = "".join(f'#include "{path.with_name("model.h")}"\n' for path in three)
    values = ", ".join(map(str, image.transpose(0, 2, 3, 1).ravel()))
    runs = "".join(
        f"    static _Alignas(64) char {name}_memory[{name}_WORKSPACE_BYTES];\n"
        f"    if ({name}_run(image, logits, {name}_memory + 4) != -1) return 1;\n"
        f"    if ({name}_run(image, logits, {name}_memory)) return 1;\n"
        f'    for (int i = 0; i < 10; ++i) printf("%.9g\\n", logits[i]);\n'
        for name in names
    )
    (tmp_path / "main.c").write_text(
        f"#include <stdio.h>\n{program}"
        f"static const _Alignas(64) float image[] = {{{values}}};\n"
        f"static _Alignas(64) float logits[10];\nint main(void) {{\n{runs}    return 0;\n}}\n"
    )
    files = [*three]
    if links == "libraries":
        files = [tmp_path / f"lib{name}.so" for name in names]
        for path, library in zip(three, files, strict=True):
            strict = ("-Wl,--fatal-warnings", "-Wl,-z,defs", "-Wl,-z,text")
            build(tmp_path, "-shared", "-fPIC", *strict, path, "-o", library, "-lm")
    build(tmp_path, "-std=c11", "main.c", *files, "-o", "main", "-lm")
    output = subprocess.run(tmp_path / "main", stdout=-1, check=True).stdout
    logits = np.array(output.split(), float).reshape(3, 10)
    expected = np.concatenate([model.logits(image) for model in three.values()])
    assert np.abs(logits - expected).max() <= 1e-3 * np.std(expected)


def test_network_has_the_same_names_again_and_hides_what_is_not_public(three, tmp_path):
    path, model = next(iter(three.items()))
    name = name_of(path)
    assert name.startswith(f"nas_{model.architecture.digest[:8]}_")
    assert name_of(written(model, tmp_path)) == name
    public = {f"{name}_{each}" for each in ("run", "mean", "std", "class_names")}
    assert defined_symbols(path, hidden=False) == public
    assert all(each.startswith(f"{name}_") for each in defined_symbols(path, hidden=True))


def test_network_is_run_where_nothing_may_be_run_from_the_temporary_folder(
    three, tmp_path, request, monkeypatch
):
    if rerun_where_mounting_is_allowed(request, tmp_path):
        return
    path, model = next(iter(three.items()))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with mounted(tmp_path, "size=32m,noexec"):
        assert C.can_run(path)
        assert_computes_the_same(C.open(path), model, digits_images(), C.tolerance)


def photos(folder: Path) -> list[Path]:
    """Return files with an orientation, transparency, a palette, or more pixels than are needed."""
    colours = np.add.outer(np.arange(96) * 2, np.arange(150))[:, :, None] % (97, 143, 256)
    rgb = Image.fromarray(colours.astype(np.uint8))
    grey, alpha = rgb.convert("L"), Image.linear_gradient("L").resize(rgb.size)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    paths = [folder / f"{number}.jpg" for number in range(6)]
    rgb.save(paths[0], "JPEG", exif=turned)
    grey.save(paths[1], "JPEG", exif=turned)
    Image.merge("RGBA", (*rgb.split(), alpha)).save(paths[2], "PNG")
    Image.merge("LA", (grey, alpha)).save(paths[3], "PNG", exif=turned)
    rgb.quantize(16).save(paths[4], "PNG", transparency=3)
    rgb.convert("CMYK").save(paths[5], "JPEG")
    return paths


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (3, 6)])
def test_command_of_the_example_reads_a_photo_as_training_does(channels, size, tmp_path):
    (mean, std), decoded_size = np.full((2, channels), 0.5), 8
    how = Preprocessing(
        reading=image_reading(decoded_size, "#20a0f0"),
        image_size=size,
        channels=channels,
        mean=tuple(mean),
        std=tuple(std),
        classes=("one", "two"),
    )
    write_source(SOURCES / "example.c.j2", tmp_path, how=how, commands=())
    comment = (tmp_path / "example.c").read_text().partition("*/")[0]
    (code,) = re.findall(r'python -c "([^"]+)"', comment)
    for path in photos(tmp_path):
        with open_image(path, decoded_size, how.reading.formats) as image:
            pixels = read_pixels(image, decoded_size, how.reading.background, channels)
        pixels = pixels.reshape(1, decoded_size, decoded_size, channels)
        command = code.replace("photo.jpg", path.name)
        subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
        raw = np.frombuffer((tmp_path / "image.raw").read_bytes(), np.uint8)
        values = raw.reshape(1, size, size, channels)
        own = normalise(values, size, mean, std)
        # Pillow rounds to bytes twice: after each of the two directions.
        rounding = 0 if size == decoded_size else 1.01 / 255 / std.min()
        assert np.abs(own - normalise(pixels, size, mean, std)).max() <= rounding


def test_several_threads_a_missing_compiler_and_other_systems_are_refused(tmp_path, monkeypatch):
    with pytest.raises(RequestError, match="one thread, and the run is for 2"):
        C.check_device("tvm", "cpu", "float32", threads=2)
    with pytest.raises(RequestError, match="one thread, and the run is for 2"):
        C.write(model_with_table("mobilenet_tiny", tmp_path, threads=2), None, tmp_path / "model.o")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("nas.runtimes.tvm.cross.find_spec", lambda _: None)
    with pytest.raises(RequestError, match="no C compiler for this machine"):
        C.check_device("tvm", "cpu", "float32")
    with pytest.raises(RequestError, match="not installed") as refused:
        model_format("c")
    assert "hardware-nas[kit]" in refused.value.remedy
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(RequestError, match="is made on Linux, and this is darwin"):
        C.check_device("tvm", "cpu", "float32")
    assert list(tmp_path.glob("model*")) == []
