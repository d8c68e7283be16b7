"""Exported files on another device: this machine, behind a real OpenSSH server."""

import os
import sys

import numpy as np
import pytest

from nas.deploy.benchmark import benchmark
from nas.deploy.formats import model_format
from nas.deploy.verify import verify
from nas.errors import ExportError, RequestError
from tests.deploy.example_model import onnx_folder
from tests.deploy.formats.models import assert_computes_the_same, digits_images
from tests.deploy.formats.test_c import written
from tests.deploy.formats.test_tvm import model_with_table
from tests.transports.servers import ssh_server


@pytest.fixture
def server(tmp_path_factory, monkeypatch):
    with ssh_server(tmp_path_factory.mktemp("ssh"), monkeypatch) as server:
        yield server


def test_program_in_c_computes_there_what_torch_computes(server, tmp_path):
    model = model_with_table("mobilenet_tiny", tmp_path)
    path = written(model, tmp_path)
    loaded = model_format("c").open(path, device=server.address)
    images = digits_images()
    assert_computes_the_same(loaded, model, images, 1e-3)
    seconds = loaded.evaluator(images[:1])(3, 2)
    assert len(seconds) == 2
    assert min(seconds) > 0
    remote = os.path.dirname(loaded._remote)
    assert os.path.isdir(remote)
    loaded._files.close()
    assert not os.path.exists(remote)


def test_program_for_another_processor_is_refused(server, tmp_path):
    model = model_with_table("mobilenet_tiny", tmp_path)
    path = written(model, tmp_path)
    loaded = model_format("c").open(path, device=server.address)
    with open(loaded._remote, "r+b") as program:
        program.seek(18)  # The machine in the header of ELF files.
        program.write(b"\xf7\x00")
    with pytest.raises(Exception, match="[Ee]xec format error|cannot execute"):
        loaded.logits(np.zeros((1, 1, 8, 8), np.float32))


def test_model_folder_is_verified_and_timed_there(server, tmp_path):
    folder = onnx_folder(tmp_path / "model")
    device = f"{server.address}?python={sys.executable}"
    result = verify(folder.path, device=device, progress=False)
    (outcome,) = result.files
    assert outcome.status == "verified"
    assert outcome.file.agreement == 1
    assert outcome.file.images > 0
    assert outcome.file.versions["onnxruntime"]
    assert "classified" in result.no_accuracy
    (timed,) = benchmark(folder.path, device=device, progress=False)
    assert timed.status == "timed"
    assert timed.file.latency_us > 0


def test_device_without_the_runtime_is_refused(server, tmp_path):
    folder = onnx_folder(tmp_path / "model")
    with pytest.raises(ExportError, match="cannot be used: exit status 1"):
        verify(folder.path, device=f"{server.address}?python=/usr/bin/false", progress=False)


def test_energy_and_cascades_are_of_this_machine(tmp_path):
    folder = onnx_folder(tmp_path / "model")
    with pytest.raises(RequestError, match="this machine only"):
        benchmark(folder.path, device="ssh://nobody", energy=True, progress=False)
