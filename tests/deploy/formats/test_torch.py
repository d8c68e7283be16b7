"""The torch format against the network that it was written from, with and without this package."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nas
from nas.deploy.formats import model_format
from nas.deploy.torch_source import TorchSource
from nas.errors import CheckpointError, ExportError, RequestError
from nas.graph import Graph, Op
from nas.torch_network import Network
from tests.deploy.formats.models import (
    assert_computes_the_same,
    digits_images,
    digits_model,
    run_python,
    with_effective_norms,
    write,
)
from tests.test_onnx_model import EXAMPLES

RUN_WITHOUT_NAS = """
import sys
import numpy, torch
sys.path.insert(0, sys.argv[1])
import network
model = network.load(sys.argv[1] + "/network.safetensors")
images = torch.from_numpy(numpy.load(sys.argv[2]))
with torch.inference_mode():
    numpy.save(sys.argv[3], model(images).numpy())
assert not [name for name in sys.modules if name.startswith("nas.")]
print(network.CLASSES, network.IMAGE_SIZE, network.MEAN, network.STD)
"""


@pytest.mark.parametrize("space", ["shufflenet_tiny", "mobilenet_v3_small"])
def test_files_compute_what_the_network_computes(space, tmp_path):
    model = digits_model(space)
    torch_format = model_format("torch")
    loaded = torch_format.open(write(torch_format, model, tmp_path))
    assert_computes_the_same(loaded, model, digits_images(), torch_format.tolerance)
    assert loaded.runner(digits_images()[:1])().shape == (1, 10)
    assert set(torch_format.versions) == {"torch", "safetensors"}
    assert loaded.quantised_layers() is None
    again = nas.load_model(tmp_path)
    assert again.architecture == model.architecture
    assert again.preprocessing == model.preprocessing
    assert np.array_equal(again.logits(digits_images()), model.logits(digits_images()))


@pytest.mark.slow
def test_source_runs_where_nas_cannot_be_imported(tmp_path):
    model = digits_model("mobilenet_v3_small")
    folder = tmp_path / "model"
    folder.mkdir()
    write(model_format("torch"), model, folder)
    np.save(tmp_path / "images.npy", digits_images())
    output = run_python(
        RUN_WITHOUT_NAS, folder, tmp_path / "images.npy", tmp_path / "logits.npy", hidden=("nas",)
    )
    expected = model.logits(digits_images())
    assert np.abs(np.load(tmp_path / "logits.npy") - expected).max() <= 1e-4 * expected.std()
    values = model.preprocessing
    assert output.strip() == (f"{values.classes} {values.image_size} {values.mean} {values.std}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_source_of_every_kind_of_op_computes_what_the_interpreter_computes(name):
    graph = EXAMPLES[name]()
    network = with_effective_norms(Network(graph, torch.Generator().manual_seed(0))).eval()
    plain = TorchSource(graph).module(network.tensors())
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, *graph.input_shape, generator=generator)
    with torch.no_grad():
        expected = network(images)
        assert torch.allclose(plain(images), expected, atol=1e-5 * float(expected.abs().max()))


def test_layer_names_are_valid_and_distinct():
    convolutions = [
        Op("conv", (at,), (1, 4, 4), slot=_slot(name))
        for at, name in enumerate(["class", "a.b", "a_b", "load_state.dict", "0", "__len__"])
    ]
    graph = Graph((Op("input", (), (1, 4, 4)), *convolutions))
    network = Network(graph, torch.Generator().manual_seed(0)).eval()
    plain = TorchSource(graph).module(network.tensors())
    images = torch.ones(1, 1, 4, 4)
    assert torch.allclose(plain(images), network(images))


def _slot(name):
    from nas.graph import Channels, Slot

    return Slot(name, Channels.prefix(1, 1), Channels.prefix(1, 1))


def test_missing_and_damaged_weights_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no network.safetensors"):
        nas.load_model(tmp_path)
    torch_format = model_format("torch")
    path = write(torch_format, digits_model("mobilenet_tiny"), tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is not readable"):
        nas.load_model(tmp_path)
    with pytest.raises(ExportError, match="'torch' does not load"):
        torch_format.open(path)


def test_weights_of_another_network_are_refused(tmp_path):
    path = write(model_format("torch"), digits_model("mobilenet_tiny"), tmp_path)
    with safe_open(str(path), framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file({key: value for key, value in tensors.items() if key != name}, path, metadata)
    with pytest.raises(CheckpointError, match="does not fit its network"):
        nas.load_model(tmp_path)
    metadata["record"] = metadata["record"].replace(
        digits_model("mobilenet_tiny").architecture.digest, "g123456789abcdef"
    )
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="is of network g123456789abcdef"):
        nas.load_model(tmp_path)


def test_space_of_a_user_comes_from_the_run_or_as_an_argument(tmp_path):
    space = nas.load_space("mobilenet_tiny", image_size=8, channels=1)
    source = nas.space.library.path_of("mobilenet_tiny").read_text()
    own = tmp_path / "own.py"
    own.write_text(source.replace("mobilenet_tiny", "own"))
    space = nas.load_space(own, image_size=8, channels=1)
    architecture = space.sample(seed=0)
    from nas.deploy.model import TrainedModel

    preprocessing = digits_model("mobilenet_tiny").preprocessing
    model = TrainedModel(architecture, nas.to_torch(architecture), preprocessing)
    folder = tmp_path / "run" / "models" / architecture.digest
    folder.mkdir(parents=True)
    write(model_format("torch"), model, folder)
    with pytest.raises(RequestError, match="no space 'own'.*space="):
        nas.load_model(folder)
    assert nas.load_model(folder, space=space).architecture == architecture
    (tmp_path / "run" / "spaces").mkdir()
    shutil.copy(own, tmp_path / "run" / "spaces")
    with pytest.raises(RequestError, match="no space 'own'.*space="):
        nas.load_model(folder)  # Nothing says that this is a run.
    (tmp_path / "run" / "run.json").write_text("{}")
    assert nas.load_model(folder).architecture == architecture
    copy = shutil.copytree(folder, tmp_path / "run" / "copies" / "mine")
    with pytest.raises(RequestError, match="no space 'own'.*space="):
        nas.load_model(copy)


def test_no_code_runs_but_that_of_a_run(tmp_path, monkeypatch):
    """A file of weights comes from anywhere: its space is a name, never a file beside it."""
    code = "from pathlib import Path; Path('ran').touch()"
    for path in ("tmp/a/spaces/mobilenet_tiny.py", "tmp/a/spaces/own.py.py", "tmp/a/b/own.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(code)
    (tmp_path / "tmp" / "a" / "b" / "c").mkdir()
    monkeypatch.chdir(tmp_path / "tmp" / "a" / "b")
    path = write(model_format("torch"), digits_model("mobilenet_tiny"), tmp_path / "tmp/a/b/c")
    assert nas.load_model("c").architecture == digits_model("mobilenet_tiny").architecture
    tensors = load_file(path)
    with safe_open(str(path), framework="np") as file:
        metadata = file.metadata()
    metadata["record"] = metadata["record"].replace('"mobilenet_tiny"', '"own.py"')
    save_file(tensors, path, metadata)
    with pytest.raises(RequestError, match=r"no space 'own\.py'"):
        nas.load_model("c")
    assert not list(tmp_path.rglob("ran"))
