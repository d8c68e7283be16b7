"""OpenVINO files: any batch, and no reports over the network. See `test_formats` for the rest."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from nas.deploy.formats import model_format
from nas.deploy.formats.openvino import import_openvino
from tests.deploy.formats.models import (
    digits_images,
    digits_model,
    write,
)

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
openvino.write(digits_model(), None, path)
openvino.load(path).logits(digits_images(1))
assert "openvino" in sys.modules
"""


def test_file_takes_any_batch(tmp_path):
    model = digits_model()
    path = write(model_format("openvino"), model, tmp_path)
    openvino = import_openvino()
    network = openvino.Core().read_model(path)
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
