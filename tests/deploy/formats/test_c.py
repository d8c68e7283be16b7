"""Object files for C programs against torch, with the schedules of a latency table."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from nas.deploy.formats import model_format
from nas.deploy.formats.c import compiler_for
from nas.deploy.model import TrainedModel
from nas.errors import RequestError
from tests.deploy.formats.models import (
    assert_computes_the_same,
    digits_images,
    every_op_model,
    write,
)
from tests.deploy.formats.test_tvm import model_with_table, write_table

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
    build(path.parent, "-std=c11", "-Wall", "-Werror", "example.c", path.name, "-o", "example")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    answers = [
        subprocess.run(path.parent / "example", input=image.tobytes(), stdout=-1, check=True).stdout
        for image in pixels
    ]
    classes = [model.preprocessing.classes[at] for at in model.pixel_logits(pixels).argmax(1)]
    assert [answer.decode().strip() for answer in answers] == classes
    short = subprocess.run(path.parent / "example", input=b"\0" * 63, capture_output=True)
    assert (short.returncode, short.stderr) == (1, b"expected an image of 64 bytes\n")


def test_two_models_run_in_one_program_and_refuse_places_that_are_not_aligned(tmp_path):
    program, names, expected = "", [], []
    image = digits_images()[:1]
    for space in ("mobilenet_tiny", "squeezenet_tiny"):
        (tmp_path / space).mkdir()
        model = model_with_table(space, tmp_path / space)
        path = written(model, tmp_path / space)
        name = f"nas_{model.network.graph.digest[:8]}"
        program += f'#include "{path.with_name("model.h")}"\n'
        names.append(name)
        expected.append(model.logits(image))
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
    files = [f"{space}/model/model.o" for space in ("mobilenet_tiny", "squeezenet_tiny")]
    build(tmp_path, "-std=c11", "main.c", *files, "-o", "both", "-lm")
    output = subprocess.run(tmp_path / "both", stdout=-1, check=True).stdout
    logits = np.array(output.split(), float).reshape(2, 10)
    assert np.abs(logits - np.concatenate(expected)).max() <= 1e-3 * np.std(expected)


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
