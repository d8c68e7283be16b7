"""Damaged checkpoints, and those of earlier versions, on the file of a supernet."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from nas.errors import CheckpointError
from nas.space import load_space
from nas.supernet import Supernet
from tests.supernet.scrambled_supernet import scrambled

SPACE = load_space("shufflenet_tiny", image_size=8, channels=3, classes=10)


def test_missing_or_truncated_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="There is no"):
        Supernet.load(tmp_path)
    scrambled(SPACE).save(tmp_path, {})
    path = tmp_path / "supernet.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        Supernet.load(tmp_path)


def test_unknown_schema_is_refused_by_number(tmp_path):
    scrambled(SPACE).save(tmp_path, {"schema": 99})
    with pytest.raises(CheckpointError, match="schema 99"):
        Supernet.load(tmp_path)


def read_file(folder):
    """Return path, tensors and metadata of a saved supernet."""
    path = folder / "supernet.safetensors"
    with safe_open(path, framework="pt") as file:
        return path, {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def without_checksum(metadata):
    """Return the metadata as earlier versions wrote it."""
    record = json.loads(metadata["record"])
    del record["sha256"]
    return {"record": json.dumps(record)}


def test_flipped_bit_in_the_weights_is_refused(tmp_path):
    scrambled(SPACE).save(tmp_path, {})
    path = tmp_path / "supernet.safetensors"
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum does not match its weights"):
        Supernet.load(tmp_path)


def test_changed_record_is_refused(tmp_path):
    scrambled(SPACE).save(tmp_path, {"seed": 1})
    path, tensors, metadata = read_file(tmp_path)
    metadata["record"] = metadata["record"].replace('"seed": 1', '"seed": 2')
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="checksum"):
        Supernet.load(tmp_path)


def test_file_without_checksum_is_read_if_its_values_are_finite(tmp_path):
    """Earlier versions wrote no checksum."""
    supernet = scrambled(SPACE)
    supernet.save(tmp_path, {})
    path, tensors, metadata = read_file(tmp_path)
    unsigned = without_checksum(metadata)
    save_file(tensors, path, unsigned)
    loaded = Supernet.load(tmp_path)
    assert all(torch.equal(a, tensors[name]) for name, a in loaded.state_dict().items())
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, path, unsigned)
    with pytest.raises(CheckpointError, match=f"tensor '{name}' has values that are not finite"):
        Supernet.load(tmp_path)


def test_missing_or_misshaped_tensor_is_named(tmp_path):
    scrambled(SPACE).save(tmp_path, {})
    path, tensors, metadata = read_file(tmp_path)
    metadata = without_checksum(metadata)
    name = "stem.weight"
    save_file({**tensors, name: tensors[name][:1].clone()}, path, metadata)
    with pytest.raises(CheckpointError, match=f"tensor '{name}' is 1x3x3x3 of float32, not "):
        Supernet.load(tmp_path)
    save_file({**tensors, name: tensors[name].double()}, path, metadata)
    with pytest.raises(CheckpointError, match=f"tensor '{name}' is .* of float64, not "):
        Supernet.load(tmp_path)
    del tensors[name]
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=f"has no tensor '{name}'"):
        Supernet.load(tmp_path)


@pytest.mark.parametrize("record", ["", "[]", "null", '{"schema": 1}', "[" * 100_000])
def test_file_without_a_record_is_refused(tmp_path, record):
    scrambled(SPACE).save(tmp_path, {})
    path, tensors, _ = read_file(tmp_path)
    save_file(tensors, path, {"record": record})
    with pytest.raises(CheckpointError, match=r"The record in .*supernet.safetensors is not a"):
        Supernet.load(tmp_path)
