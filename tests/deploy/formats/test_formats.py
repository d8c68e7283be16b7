"""The list of formats, and what happens if a package is not installed."""

from __future__ import annotations

import sys

import pytest

from nas.deploy.formats import all_formats, format_names, model_format
from nas.errors import RequestError
from tests.deploy.formats.models import run_python

LIST = """
import nas.deploy.formats as formats
print(len([each.file_name for each in formats.all_formats()]))
heavy = {"torch", "tvm", "onnx", "onnxruntime", "openvino", "nncf", "executorch", "coremltools",
         "ai_edge_litert", "optuna"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


WRITE = """
from pathlib import Path
from nas.deploy.formats import model_format
from tests.deploy.formats.models import digits_model
model_file = model_format(sys.argv[1])
path = Path(sys.argv[2]) / model_file.file_name
model_file.write(digits_model("squeezenet_tiny"), None, path)
if not model_file.runs_here:
    model_file.load(path)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "onnx", "openvino", "executorch", "coreml", "tflite"])
def test_exporters_write_nothing_to_the_terminal(name, tmp_path):
    (model_file,) = [each for each in all_formats() if each.name == name]
    if model_file.missing_packages:
        pytest.skip(f"needs {', '.join(model_file.missing_packages)}")
    assert run_python(f"sys.stderr = sys.stdout\n{WRITE}", name, tmp_path) == ""


def test_listing_formats_imports_none_of_their_packages():
    assert int(run_python(LIST)) == len(format_names())


@pytest.mark.parametrize("name", format_names())
def test_missing_package_gives_the_command_that_installs_it(name, monkeypatch):
    (model_file,) = [each for each in all_formats() if each.name == name]
    package = model_file.packages[0].partition(".")[0]
    monkeypatch.setitem(sys.modules, package, None)
    extra = f"'hardware-nas[{model_file.extra}]'" if model_file.extra else "hardware-nas"
    with pytest.raises(RequestError) as refused:
        model_format(name)
    assert package in refused.value.message
    assert refused.value.remedy == f"pip install {extra}"
    assert model_file.missing_packages
