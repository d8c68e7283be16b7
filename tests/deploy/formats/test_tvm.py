"""Libraries compiled by TVM against torch, with the schedules of a latency table."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.deploy.formats import model_format
from nas.deploy.model import TrainedModel
from nas.deploy.model_process import ModelProcess
from nas.deploy.scripts import run_script
from nas.errors import ExportError, RequestError, TableDeviceError
from nas.files.documents import to_json
from nas.latency import LatencyTable, worker_process
from nas.latency.record import Record
from nas.latency.timing import Timing
from nas.runtimes.tvm.kernel_timer import TvmKernelTimer
from nas.runtimes.tvm.kit.address import EXAMPLE
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.cpu import CpuTemplates
from tests.deploy.formats.models import (
    assert_computes_the_same,
    digits_images,
    digits_model,
    every_op_model,
    run_python,
    write,
)
from tests.machine.nameless import run_nameless

RUN_WITH_TVM_ALONE = """
import sys
import numpy, tvm
library = tvm.runtime.load_module(sys.argv[1])
network = tvm.relax.VirtualMachine(library, tvm.cpu())
images = numpy.load(sys.argv[2]).transpose(0, 2, 3, 1)
run = lambda image: network["main"](tvm.runtime.tensor(numpy.ascontiguousarray(image))).numpy()
numpy.save(sys.argv[3], numpy.concatenate([run(image[None]) for image in images]))
print(network["preprocessing"]())
"""

LIST_IMPORTS = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code
print(f"tvm {'tvm' in sys.modules}, torch {'torch' in sys.modules}")
"""


def write_table(path, model, *, threads=1, skip=0):
    """Return a table with a schedule for each kernel of a model, none of them the first one."""
    runtime = TvmRuntime(threads=threads)
    return filled_table(path, model, runtime, runtime.timer.templates, skip=skip)


def filled_table(path, model, runtime, templates, *, skip=0):
    """Return a table of a device with the last of some templates' schedules for each kernel."""
    table = LatencyTable.open_or_create(path, runtime)
    with table.writing():
        for kernel in dict.fromkeys(runtime.kernels(model.graph)[skip:]):
            schedule = templates.candidates(kernel)[-1]
            timing = Timing((1.0,) * 10)
            table.append(
                Record.from_timings("kernel", [timing], name=kernel.text, schedule=schedule)
            )
    return table


def model_with_table(space, folder, **options):
    model = digits_model(space)
    table = write_table(folder / "table.jsonl", model, **options)
    return TrainedModel(model.architecture, model.network, model.preprocessing, table)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> Path:
    """Return the library of `digits_model()`, alone in its folder."""
    model = model_with_table("squeezenet_tiny", tmp_path_factory.mktemp("table"))
    return write(model_format("tvm"), model, tmp_path_factory.mktemp("model"))


@pytest.mark.slow
def test_library_of_every_op_computes_what_torch_computes(tmp_path, folder, monkeypatch):
    compiled = {}
    function = CpuTemplates.function

    def recorded(templates, kernel, schedule, name):
        compiled[kernel] = schedule
        return function(templates, kernel, schedule, name)

    monkeypatch.setattr(CpuTemplates, "function", recorded)
    every_op = every_op_model()
    table = write_table(tmp_path / "table.jsonl", every_op)
    model = TrainedModel(None, every_op.network, every_op.preprocessing, table)
    tvm_format = model_format("tvm")
    loaded = tvm_format.open(write(tvm_format, model, folder))
    assert compiled == table.schedules()
    assert_computes_the_same(loaded, model, digits_images(), tvm_format.tolerance)
    assert set(tvm_format.versions) == {"apache-tvm", "apache-tvm-ffi"}
    run = loaded.runner(digits_images()[:1])
    run()
    run()


def test_library_for_two_threads_computes_what_torch_computes(tmp_path, folder):
    model = model_with_table("mobilenet_tiny", tmp_path, threads=2)
    tvm_format = model_format("tvm")
    loaded = tvm_format.open(write(tvm_format, model, folder), threads=2)
    assert_computes_the_same(loaded, model, digits_images(), tvm_format.tolerance)


@pytest.mark.slow
def test_library_runs_in_a_process_with_tvm_alone(tmp_path, library):
    model = digits_model()
    np.save(tmp_path / "images.npy", digits_images())
    arguments = (library, tmp_path / "images.npy", tmp_path / "logits.npy")
    output = run_python(RUN_WITH_TVM_ALONE, *arguments, hidden=("nas", "torch"))
    expected = model.logits(digits_images())
    assert np.abs(np.load(tmp_path / "logits.npy") - expected).max() <= 1e-3 * expected.std()
    assert json.loads(output) == json.loads(model.preprocessing.embedded)


@pytest.mark.slow
def test_script_runs_a_library_without_a_home_folder(tmp_path, library):
    model = digits_model()
    (tmp_path / "preprocessing.json").write_text(to_json(model.preprocessing))
    (tmp_path / "run.py").write_text(run_script(library.name))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    arguments = (tmp_path / "image.png", "--model", library, "--json")
    done = run_nameless(tmp_path / "run.py", *arguments)
    assert done.returncode == 0, done.stderr
    (expected,) = model.pixel_logits(pixels[None, ..., None])
    logits = json.loads(done.stdout)[0]["logits"]
    assert np.abs(logits - expected).max() <= 1e-3 * expected.std()


def test_neither_process_nor_script_of_a_library_imports_torch(tmp_path, library):
    with ModelProcess(model_format("tvm"), library) as process:
        process.load(digits_images()[:1])
        maps = Path(f"/proc/{process._process.pid}/maps")
        assert not maps.exists() or "libtorch" not in maps.read_text()
    (tmp_path / "preprocessing.json").write_text(to_json(digits_model().preprocessing))
    (tmp_path / "run.py").write_text(run_script(library.name))
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "image.png")
    arguments = (tmp_path / "run.py", tmp_path / "image.png", "--model", library)
    assert run_python(LIST_IMPORTS, *arguments).splitlines()[-1] == "tvm True, torch False"


def test_library_for_another_processor_does_not_run_here(tmp_path, library):
    assert model_format("tvm").can_run(library)
    content = bytearray(library.read_bytes())
    content[18:20] = (183).to_bytes(2, "little")  # EM_AARCH64 of the ELF specification
    (tmp_path / library.name).write_bytes(content)
    assert not model_format("tvm").can_run(tmp_path / library.name)


def test_model_without_a_table_names_the_command_that_builds_one(tmp_path):
    with pytest.raises(RequestError, match="nas table build .*--space mobilenet_tiny"):
        write(model_format("tvm"), digits_model("mobilenet_tiny"), tmp_path)


@pytest.mark.slow
def test_kernel_that_the_table_lacks_is_timed_and_added(tmp_path, folder, monkeypatch):
    def time_kernel(timer, kernel):
        return timer.templates.candidates(kernel)[-1], Timing((2.0,) * 10)

    monkeypatch.setattr(TvmKernelTimer, "time_kernel", time_kernel)
    monkeypatch.setattr(worker_process, "timers_for", lambda runtime: nullcontext([runtime.timer]))
    model = model_with_table("mobilenet_tiny", tmp_path, skip=1)
    first, *others = dict.fromkeys(TvmRuntime().kernels(model.graph))
    assert first not in model.table.schedules()
    loaded = model_format("tvm").open(write(model_format("tvm"), model, folder))
    assert_computes_the_same(loaded, model, digits_images(), model_format("tvm").tolerance)
    table = LatencyTable.open(model.table.path)
    assert table.schedules().keys() == {first, *others}
    assert table.record(others[0]).latency_us == 1.0, "what the table has is not timed again"


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [("processor", "another processor", TableDeviceError), ("runtime", "litert", RequestError)],
)
def test_table_of_another_device_is_refused(field, value, error, tmp_path, folder):
    path = tmp_path / "table.jsonl"
    model = model_with_table("mobilenet_tiny", tmp_path)
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(header), field: value}), *lines]) + "\n")
    table = LatencyTable.open(path)
    other = TrainedModel(model.architecture, model.network, model.preprocessing, table)
    with pytest.raises(error, match=value):
        write(model_format("tvm"), other, folder)


@pytest.mark.parametrize(
    ("runtime", "target", "dtype"),
    [
        ("tvm", "cuda", "float32"),
        ("tvm", "cpu", "float16"),
        ("onnxruntime", "cpu", "float32"),
        ("tvm", EXAMPLE, "float32"),
    ],
)
def test_device_without_libraries_is_refused(runtime, target, dtype):
    with pytest.raises(RequestError, match="Format 'tvm'"):
        model_format("tvm").check_device(runtime, target, dtype)


def test_machine_without_a_compiler_is_an_error(tmp_path, folder, monkeypatch):
    from tvm.support import cc

    model = model_with_table("mobilenet_tiny", tmp_path)
    monkeypatch.setattr(cc, "get_cc", lambda: None)
    with pytest.raises(ExportError, match="compiler to link"):
        write(model_format("tvm"), model, folder)
