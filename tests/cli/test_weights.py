"""`nas weights`: what is printed of a file, and that a bad one is a wrong request."""

import hashlib
import json

import pytest
import torch

from nas.space import load_definition
from nas.torch_network import to_torch


@pytest.fixture
def weights(tmp_path):
    """A file with random weights of a published network."""
    architecture = load_definition("mobilenet").published("mobilenet_v2_0.35")
    path = tmp_path / "weights.pth"
    torch.save(to_torch(architecture).state_dict(), path)
    return path


def test_the_network_of_a_file_is_printed(weights, invoke):
    done = invoke("weights", weights, "--conventions", "torch", "--json")
    record = json.loads(done.stdout)
    assert (record["reference"], record["space"]) == ("mobilenet_v2_0.35", "mobilenet")
    assert (record["params"], record["classes"]) == (1_677_128, 1000)
    assert record["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (record["license"], record["differences"]) == (None, [])

    text = invoke("weights", weights, "--conventions", "tensorflow").stdout
    assert "mobilenet_v2_0.35, 1,677,128 parameters, 1000 classes" in text
    assert "epsilon      0.001, here 1e-05" in text
    assert "images moved by 31 of 224 pixels" in text


def test_what_is_left_out_of_a_checkpoint_is_named(weights, invoke):
    state = {f"model.{name}": tensor for name, tensor in torch.load(weights).items()}
    state["criterion.pos_weight"] = torch.tensor(3.2)
    buffers = {f"buffers.{number}": torch.ones(2) for number in range(20)}
    torch.save({"net": {**state, **buffers}, "optimizer": {"state": [torch.ones(2)]}}, weights)
    record = json.loads(invoke("weights", weights, "--conventions", "torch", "--json").stdout)
    assert record["entry"] == "net"
    assert record["left_out"] == ["optimizer", "criterion.pos_weight", *buffers]
    text = invoke("weights", weights, "--conventions", "torch").stdout
    assert "left out     optimizer, criterion.pos_weight, buffers.0, " in text
    assert ", buffers.7, and 12 more" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "State its conventions: torch (PyTorch's defaults"),
        (("--conventions", "keras"), "Give 'torch', 'torchvision_v3' or 'tensorflow'"),
        (("--reference", "mobilenet_v2_1.0"), "not of mobilenet_v2_1.0, but of mobilenet_v2_0.35"),
    ],
)
def test_a_wrong_request_ends_with_2_and_writes_nothing(weights, options, message, invoke):
    done = invoke("weights", weights, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert list(weights.parent.iterdir()) == [weights]
