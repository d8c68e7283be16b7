"""Damaged checkpoints, on the file of a supernet."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nas.errors import CheckpointError
from nas.space import load_space
from nas.supernet import checkpoint
from nas.supernet.weights import Supernet
from tests.supernet.scrambled_supernet import scrambled

SPACE = load_space("shufflenet_tiny", image_size=8, channels=3, classes=10)


def read_file(folder):
    """Return path, tensors and metadata of a saved supernet."""
    path = folder / "supernet.safetensors"
    with safe_open(path, framework="pt") as file:
        return path, {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def cut(folder):
    path = folder / "supernet.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder):
    path = folder / "supernet.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def change_the_record(folder):
    path, tensors, metadata = read_file(folder)
    save_file(tensors, path, {"record": metadata["record"].replace('"seed": 1', '"seed": 2')})


def make_weights_infinite(folder):
    supernet = scrambled(SPACE)
    supernet.get_parameter("stem.weight").data.fill_(torch.inf)
    supernet.save(folder, {})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "supernet.safetensors").unlink(), "There is no"),
        (cut, "is not readable"),
        (flip_a_bit, "checksum does not match its weights"),
        (change_the_record, "checksum"),
        (make_weights_infinite, "tensor 'stem.weight' has values that are not finite"),
        (lambda folder: scrambled(SPACE).save(folder, {"schema": 99}), "schema 99"),
    ],
)
def test_damaged_file_is_refused(tmp_path, damage, message):
    scrambled(SPACE).save(tmp_path, {"seed": 1})
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        Supernet.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:1], r"tensor 'stem.weight' is 1x3x3x3 of float32, not "),
        (lambda t: t.double(), r"tensor 'stem.weight' is .* of float64, not "),
        (lambda t: None, r"has no tensor 'stem.weight'"),
    ],
)
def test_missing_or_misshaped_tensor_is_named(change, message):
    expected = scrambled(SPACE).state_dict()
    tensors = {**expected, "stem.weight": change(expected["stem.weight"])}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        checkpoint.require_tensors(Path("supernet.safetensors"), given, expected)


@pytest.mark.parametrize("record", ["", "[]", "null", '{"schema": 1}', "[" * 100_000])
def test_file_without_a_record_is_refused(tmp_path, record):
    scrambled(SPACE).save(tmp_path, {})
    path, tensors, _ = read_file(tmp_path)
    save_file(tensors, path, {"record": record})
    with pytest.raises(CheckpointError, match=r"The record in .*supernet.safetensors is not a"):
        Supernet.load(tmp_path)
