"""OpenVINO files against torch, in float32 and in int8."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from nas.deploy.formats import model_format
from nas.deploy.formats.openvino import import_openvino
from nas.errors import ExportError
from nas.graph import WEIGHTED_KINDS
from nas.quantisation.simulation import simulate
from tests.deploy.formats.models import (
    FAMILIES,
    assert_computes_the_same,
    digits_images,
    digits_model,
    write,
)
from tests.deploy.native_quantisation import quantise_here

pytest.importorskip("openvino")

WRITE_AND_RUN = """
import socket, sys
from pathlib import Path

def refuse(*arguments):
    print("network", arguments, file=sys.stderr)
    raise OSError("no network here")

socket.socket.connect = socket.getaddrinfo = refuse
from nas.deploy.formats import model_format
from tests.deploy.formats.models import digits_images, digits_model
openvino = model_format("openvino")
path = Path(sys.argv[1]) / "model.xml"
openvino.write(digits_model("squeezenet_tiny"), None, path)
openvino.load(path).logits(digits_images(1))
assert "openvino" in sys.modules
"""


@pytest.mark.parametrize("space", FAMILIES)
def test_file_computes_what_torch_computes(space, tmp_path):
    model = digits_model(space)
    openvino_format = model_format("openvino")
    loaded = openvino_format.load(write(openvino_format, model, tmp_path))
    assert_computes_the_same(loaded, model, digits_images(), openvino_format.tolerance)
    loaded.runner(digits_images()[:1])()
    assert list(loaded.versions) == ["openvino"]
    int8_layers, layers = loaded.quantised_layers()
    weighted = sum(op.kind in WEIGHTED_KINDS for op in model.graph.ops)
    assert (int8_layers, layers) == (0, weighted)


@pytest.mark.parametrize("space", FAMILIES)
@pytest.mark.slow
def test_int8_file_computes_what_the_quantised_network_computes(space, tmp_path):
    model = digits_model(space)
    images = digits_images(100)
    network = quantise_here(model, images)
    openvino_format = model_format("openvino-int8")
    path = tmp_path / openvino_format.file_name
    openvino_format.write(model, network, path)
    loaded = openvino_format.load(path)
    expected = simulate(network, images)
    difference = np.abs(loaded.logits(images) - expected).max() / expected.std()
    assert difference <= openvino_format.tolerance
    int8_layers, layers = loaded.quantised_layers()
    assert int8_layers >= 0.9 * layers
    assert layers == sum(op.kind in WEIGHTED_KINDS for op in model.graph.ops)


def test_file_holds_the_preprocessing_and_takes_any_batch(tmp_path):
    model = digits_model("mobilenet_tiny")
    path = write(model_format("openvino"), model, tmp_path)
    openvino = import_openvino()
    network = openvino.Core().read_model(path)
    assert json.loads(network.get_rt_info("preprocessing").astype(str)) == json.loads(
        model.preprocessing.embedded
    )
    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (logits,) = compiled({"image": digits_images(3)}).values()
    expected = model.logits(digits_images(3))
    assert np.abs(logits - expected).max() <= 1e-3 * expected.std()


@pytest.mark.slow
def test_openvino_reports_nothing_and_writes_nothing_below_the_home_folder(tmp_path):
    home, folder = tmp_path / "home", tmp_path / "model"
    home.mkdir()
    folder.mkdir()
    removed = ("CI", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")
    environment = {key: value for key, value in os.environ.items() if key not in removed}
    completed = subprocess.run(
        [sys.executable, "-c", WRITE_AND_RUN, str(folder)],
        env={
            **environment,
            "HOME": str(home),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "network" not in completed.stderr
    assert list(home.rglob("*")) == []


def test_damaged_file_is_refused(tmp_path):
    path = write(model_format("openvino"), digits_model("mobilenet_tiny"), tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ExportError, match="OpenVINO refuses"):
        model_format("openvino").load(path)
