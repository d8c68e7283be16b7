"""Object files for other processors than this machine's, which emulators run.

`.ci/arm64-board FOLDER` brings the emulators, and `NAS_ARM64_BOARD=FOLDER` names its folder.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from nas.data import load_dataset
from nas.deploy.formats import c_model, model_format
from nas.deploy.formats.c import compiler_for
from nas.deploy.model import TrainedModel
from nas.deploy.model_process import ModelProcess
from nas.deploy.verify import EMULATED_IMAGES, ReferenceImages, check_file
from nas.errors import ExportError, RequestError
from nas.latency import configured_runtime
from nas.run.model_card import ExportedFile
from nas.runtimes.tvm.cross import code_target
from nas.runtimes.tvm.kit import address
from nas.schedules.cpu import CpuTemplates
from tests.deploy.formats.models import (
    assert_computes_the_same,
    defined_symbols,
    digits_images,
    digits_model,
    every_op_model,
    write,
)
from tests.deploy.formats.test_tvm import filled_table

C = model_format("c")

SCALAR = "+a,+c,+d,+f,+m"

TARGETS = {
    "aarch64": "triple=aarch64-linux-gnu&cpu=cortex-a76",
    "android": "triple=aarch64-linux-android&cpu=cortex-a76",
    "arm": "triple=armv7-linux-gnueabihf&cpu=cortex-a9",
    "riscv64": f"triple=riscv64-linux-gnu&cpu=generic-rv64&features={SCALAR}",
    "riscv64 u74": "triple=riscv64-linux-gnu&cpu=sifive-u74",
    "riscv64 vector": f"triple=riscv64-linux-gnu&cpu=generic-rv64&features={SCALAR},+v",
    "x86_64": "triple=x86_64-linux-gnu&cpu=haswell",
}

OF_THE_C_LIBRARY = {"expf", "memcpy", "memmove", "memset"}
OF_THE_LINKER = {"_GLOBAL_OFFSET_TABLE_"}


@pytest.fixture
def emulators(monkeypatch: pytest.MonkeyPatch) -> None:
    if "NAS_ARM64_BOARD" not in os.environ:
        pytest.skip("needs the emulators of .ci/arm64-board")
    folder = os.environ["NAS_ARM64_BOARD"]
    monkeypatch.setenv("PATH", f"{folder}/tools/usr/bin:{os.environ['PATH']}")


def written(device: str, model: TrainedModel, folder: Path) -> tuple[TrainedModel, Path]:
    """Write a model for a device that is reached by a kit, and return it with its path."""
    target = address.parse(f"kit:device?{TARGETS[device]}")
    templates = CpuTemplates(code_target(target.triple, target.cpu, target.features), 1)
    runtime = configured_runtime("tvm", target=target.text)
    table = filled_table(folder / "table.jsonl", model, runtime, templates)
    model = TrainedModel(model.architecture, model.network, model.preprocessing, table)
    (folder / "model").mkdir()
    return model, write(C, model, folder / "model")


def checked(path: Path, model: TrainedModel) -> ExportedFile:
    """Verify a file as an export does."""
    data = load_dataset("digits", validation_fraction=0.5)
    images = data.test.take(slice(20))
    reference = ReferenceImages(images, model.pixel_logits(images.pixels))
    with ModelProcess(C, path) as process:
        return check_file(process, reference, model.preprocessing, data=data)


@pytest.mark.slow
@pytest.mark.parametrize("device", TARGETS)
def test_object_of_every_op_needs_the_c_library_alone(device: str, tmp_path: Path) -> None:
    _, path = written(device, every_op_model(), tmp_path)
    symbols = subprocess.run(["readelf", "-sW", path], stdout=-1, check=True, text=True).stdout
    undefined = set(re.findall(r" UND (\S+)", symbols))
    # Functions of every compiler for 32-bit Arm, as its ABI names them.
    of_the_abi = {name for name in undefined if device == "arm" and name.startswith("__aeabi_")}
    assert undefined - OF_THE_LINKER - of_the_abi <= OF_THE_C_LIBRARY
    (name,) = re.findall(r"int (\w+)_run\(", path.with_name("model.h").read_text())
    public = {f"{name}_{each}" for each in ("run", "mean", "std", "class_names")}
    assert defined_symbols(path, hidden=False) == public
    assert all(each.startswith(f"{name}_") for each in defined_symbols(path, hidden=True))


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.usefixtures("emulators")
def test_program_beside_a_network_converts_half_precision(tmp_path: Path) -> None:
    """The compiler's function takes its argument in another register than that of TVM's code."""
    _, path = written("riscv64", digits_model("mobilenet_tiny"), tmp_path)
    (path.parent / "main.c").write_text(
        '#include "model.h"\n#include <stdio.h>\n'
        "static _Alignas(MODEL_ALIGNMENT) char memory[MODEL_WORKSPACE_BYTES];\n"
        "int main(int count, char **arguments) {\n"
        "    volatile _Float16 half = (_Float16)(count + 0.5f);\n"
        '    printf("%g %s", (double)half, arguments[0]);\n'
        "    return MODEL_RUN((float *)(memory + 4), (float *)memory, memory) != -1;\n}\n"
    )
    compiler = [*compiler_for(f"kit:device?{TARGETS['riscv64']}"), "-static", "-o", "main"]
    subprocess.run([*compiler, "main.c", path.name, "-lm"], cwd=path.parent, check=True)
    command = ["qemu-riscv64-static", "./main"]
    done = subprocess.run(command, cwd=path.parent, stdout=-1, check=True, text=True)
    assert done.stdout == "1.5 ./main"


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.usefixtures("emulators")
@pytest.mark.parametrize("device", TARGETS)
def test_emulated_device_classifies_digits_as_torch_does(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = written(device, digits_model("mobilenet_tiny"), tmp_path)
    monkeypatch.setattr(c_model, "runs_here", lambda path: False)
    loaded = C.open(path)
    images = digits_images()
    assert_computes_the_same(loaded, model, images, C.tolerance)
    assert (loaded.logits(images).argmax(1) == model.logits(images).argmax(1)).all()


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.usefixtures("emulators")
def test_commands_of_the_example_make_a_program_for_the_device(tmp_path: Path) -> None:
    model, path = written("arm", digits_model("mobilenet_tiny"), tmp_path)
    folder, data = path.parent, load_dataset("digits", validation_fraction=0.5)
    comment = (folder / "example.c").read_text().partition("*/")[0]
    compile_it, make_raw = re.findall(
        r"^ +(?:or  )?python (-m ziglang .+|-c [^*]+)$", comment, re.M
    )
    python = shlex.quote(sys.executable)
    subprocess.run(f"{python} {compile_it}", shell=True, cwd=folder, check=True)
    pixels = data.test.pixels[:4]
    expected = [data.classes[at] for at in model.pixel_logits(pixels).argmax(1)]
    answers = []
    for image in pixels:
        Image.fromarray(image[:, :, 0]).save(folder / "photo.jpg", "PNG")
        subprocess.run(f"{python} {make_raw}", shell=True, cwd=folder, check=True)
        with (folder / "image.raw").open("rb") as raw:
            done = subprocess.run(
                ["qemu-arm-static", "./example"], stdin=raw, stdout=-1, cwd=folder
            )
        answers.append(done.stdout.decode().strip())
    assert answers == expected


@pytest.mark.slow
@pytest.mark.qemu
def test_what_ran_a_file_of_another_processor_is_stated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    model, path = written("riscv64 vector", digits_model("mobilenet_tiny"), tmp_path)
    monkeypatch.setattr(c_model, "_EMULATORS", {})
    file = checked(path, model)
    assert (file.runs_here, file.emulator, file.images) == (False, "", 0)
    assert file.elsewhere == "not run here"
    with pytest.raises(RequestError, match="is for another processor, and no emulator"):
        C.open(path)
    monkeypatch.undo()

    request.getfixturevalue("emulators")
    file = checked(path, model)
    assert file.elsewhere == f"run by qemu-riscv64-static on {EMULATED_IMAGES} images"
    assert (file.agreement, file.accuracy, file.latency, file.peak_memory_bytes) == (1, *[None] * 3)
    assert file.difference <= file.tolerance == C.tolerance

    # A processor without vectors.
    monkeypatch.setattr(c_model, "_EMULATORS", {"riscv64": ("qemu-riscv64", "rv64,v=false")})
    assert checked(path, model).elsewhere == "not run here"


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.usefixtures("emulators")
def test_emulated_file_that_computes_something_else_is_an_error(tmp_path: Path) -> None:
    _, path = written("aarch64", digits_model("mobilenet_tiny"), tmp_path)
    other = TrainedModel(
        None, every_op_model().network, digits_model("mobilenet_tiny").preprocessing
    )
    with pytest.raises(ExportError, match=r"model\.o does not compute what it should"):
        checked(path, other)
