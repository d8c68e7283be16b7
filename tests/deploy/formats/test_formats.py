"""All formats: their list, the files that they write, and what happens if a package is missing."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from nas.deploy.formats import ModelFormat, all_formats, format_names, model_format
from nas.errors import ExportError, RequestError
from nas.graph import OP_KINDS, WEIGHTED_KINDS
from nas.quantisation.network import QuantisedNetwork
from nas.quantisation.simulation import simulate
from tests.deploy.formats.models import (
    assert_computes_the_same,
    digits_images,
    every_op_model,
    run_python,
    write,
)
from tests.deploy.native_quantisation import quantise_here

LIST = """
import nas.deploy.formats as formats
print(len([each.file_name for each in formats.all_formats()]))
heavy = {"torch", "tvm", "onnx", "onnxruntime", "openvino", "nncf", "executorch", "coremltools",
         "ai_edge_litert", "optuna"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""

WRITE = """
from pathlib import Path
from nas.deploy.formats import all_formats
from nas.deploy.formats.base import silenced
from tests.deploy.formats.models import digits_model
for model_file in all_formats():
    if model_file.precision == "int8" or model_file.device or model_file.missing_packages:
        continue
    path = Path(sys.argv[1]) / model_file.file_name
    with silenced():
        model_file.write(digits_model(), None, path)
    if not model_file.runs_here:
        model_file.open(path)
"""

FORMATS = {each.name: each for each in all_formats()}
INT8_FORMATS = [name for name, each in FORMATS.items() if each.precision == "int8"]


def installed(name: str) -> ModelFormat:
    """Return a format, or skip the test if its packages are missing."""
    if missing := FORMATS[name].missing_packages:
        pytest.skip(f"needs {', '.join(missing)}")
    return model_format(name)


def embedded_preprocessing(name: str, path: Path) -> str:
    """Return the JSON that a file holds, read with the packages of its format."""
    match name.removesuffix("-int8"):
        case "onnx":
            import onnx

            return {each.key: each.value for each in onnx.load(path).metadata_props}[
                "preprocessing"
            ]
        case "openvino":
            from nas.deploy.formats.openvino import import_openvino

            network = import_openvino().Core().read_model(path)
            return network.get_rt_info("preprocessing").astype(str)
        case "executorch":
            from executorch.runtime import Runtime

            program = Runtime.get().load_program(path.read_bytes())
            return program.load_method("preprocessing").execute([])[0]
        case "tflite":
            from ai_edge_litert import schema_py_generated as schema

            content = schema.ModelT.InitFromPackedBuf(path.read_bytes())
            (entry,) = content.metadata
            assert entry.name == b"preprocessing"
            return content.buffers[entry.buffer].data.tobytes()
    raise ValueError(name)


@pytest.mark.parametrize(
    "name", ["onnx", "openvino", pytest.param("executorch", marks=pytest.mark.slow), "tflite"]
)
def test_file_of_every_op_computes_what_torch_computes(name, tmp_path):
    model, model_file = every_op_model(), installed(name)
    assert {op.kind for op in model.network.graph.ops} == set(OP_KINDS)
    path = write(model_file, model, tmp_path)
    loaded = model_file.open(path)
    assert_computes_the_same(loaded, model, digits_images(), model_file.tolerance)
    run = loaded.runner(digits_images(3)[2:])
    run()
    run()
    assert list(model_file.versions)
    if name == "executorch":
        assert_runs_in_xnnpack(path)
    else:
        weighted = sum(op.kind in WEIGHTED_KINDS for op in model.graph.ops)
        assert loaded.quantised_layers() == (0, weighted)
    expected = json.loads(model.preprocessing.embedded)
    assert json.loads(embedded_preprocessing(name, path)) == expected


def assert_runs_in_xnnpack(path: Path) -> None:
    from executorch.exir._serialize._program import deserialize_pte_binary

    program = deserialize_pte_binary(path.read_bytes()).program
    forward = next(plan for plan in program.execution_plan if plan.name == "forward")
    assert {delegate.id for delegate in forward.delegates} == {"XnnpackBackend"}
    assert not [operator.name for operator in forward.operators if "conv" in operator.name]


@cache
def quantised() -> QuantisedNetwork:
    return quantise_here(every_op_model(), digits_images(100))


@pytest.mark.parametrize("name", INT8_FORMATS)
def test_int8_file_computes_what_the_quantised_network_computes(name, tmp_path):
    model, model_file, network = every_op_model(), installed(name), quantised()
    path = tmp_path / model_file.file_name
    model_file.write(model, network, path)
    loaded = model_file.open(path)
    images = digits_images(100)
    expected = simulate(network, images)
    difference = np.abs(loaded.logits(images) - expected).max() / expected.std()
    assert difference <= model_file.tolerance
    layers = sum(op.kind in WEIGHTED_KINDS for op in model.graph.ops)
    assert loaded.quantised_layers() == (layers, layers)
    expected = json.loads(model.preprocessing.embedded)
    assert json.loads(embedded_preprocessing(name, path)) == expected


@pytest.mark.parametrize("name", sorted(FORMATS.keys() - {"torch", "tflite-int8", "onnx-int8"}))
def test_damaged_file_is_refused_with_its_name(name, tmp_path):
    model_file = installed(name)
    path = tmp_path / model_file.file_name
    path.write_bytes(b"no model" * 100)
    with pytest.raises(ExportError, match=rf"'{name}' does not load .*{path.name}: "):
        model_file.open(path)


@pytest.mark.slow
def test_exporters_write_nothing_to_the_terminal(tmp_path):
    assert run_python(f"sys.stderr = sys.stdout\n{WRITE}", tmp_path) == ""


def test_listing_formats_imports_none_of_their_packages():
    assert int(run_python(LIST)) == len(format_names())


@pytest.mark.parametrize("name", [each for each in format_names() if FORMATS[each].packages])
def test_missing_package_gives_the_command_that_installs_it(name, monkeypatch):
    package = FORMATS[name].packages[0]
    monkeypatch.setitem(sys.modules, package, None)
    extra = f"'hardware-nas[{FORMATS[name].extra}]'" if FORMATS[name].extra else "hardware-nas"
    with pytest.raises(RequestError) as refused:
        model_format(name)
    assert package in refused.value.message
    assert refused.value.remedy == f"pip install {extra}"
    assert FORMATS[name].missing_packages
