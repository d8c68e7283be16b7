"""State dicts among other things: which one is taken, what is left out, and what is refused."""

import argparse
import collections
import pathlib

import numpy as np
import pytest
import torch

from nas.errors import WeightsError
from tests.pretrained.small_network import published


@pytest.fixture(scope="module")
def state():
    return published().state_dict()


def under(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def half(state):
    return {name: tensor / 2 for name, tensor in state.items()}


def in_numbered_modules(tensors, wrapper):
    """Return tensors whose layers are numbered, for safetensors have no order."""
    layers = list(published().state_dict())
    layers = [f"{wrapper}{name.rpartition('.')[0]}" for name in layers]
    numbers = {layer: at for at, layer in enumerate(dict.fromkeys(layers))}
    return {
        f"{wrapper}layers.{numbers[layer]}.{last}" if layer in numbers else name: tensor
        for name, tensor in tensors.items()
        for layer, _, last in [name.rpartition(".")]
    }


def stem(weights):
    return weights.tensors["stem.weight"]


BESIDE = {
    "metric": np.float64(71.3),
    "history": np.ones(3),
    "args": argparse.Namespace(rate=0.1),
    "hyper_parameters": {"folder": pathlib.PurePosixPath("/data")},
    "epoch": 3,
    "random": [1, (2, None)],
}


@pytest.mark.parametrize("entry", ["net", "model.state_dict", "0.params", "models.1"])
def test_a_state_dict_is_found_wherever_it_lies(entry, read, state):
    content = state
    for key in reversed(entry.split(".")):
        content = {key: content, **BESIDE} if key != "1" else [None, content]
    weights = read(content)
    assert weights.file.entry == entry
    assert weights.file.left_out == ()
    assert torch.equal(stem(weights), state["stem.weight"])


class Settings(dict):
    """A mapping of a settings library, whose class is not imported."""


@pytest.mark.parametrize("make", [tuple, list, collections.OrderedDict, Settings])
def test_containers_of_other_classes_are_read(make, read, state):
    content = [state, 3] if make in (tuple, list) else {"model": state}
    assert torch.equal(stem(read(make(content))), state["stem.weight"])


@pytest.mark.parametrize("wrapper", ["module.", "model._orig_mod.module."])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_wrappers_do_not_matter(wrapper, name, read, state):
    weights = read(in_numbered_modules(under(wrapper, state), wrapper), name)
    assert torch.equal(stem(weights), state["stem.weight"])
    assert weights.file.left_out == ()


@pytest.mark.parametrize("wrapper", ["", "model."])
def test_tensors_of_no_layer_are_left_out_and_named(wrapper, read, state):
    beside = {
        "criterion.pos_weight": torch.tensor(3.2),
        "criterion.weight": torch.ones(1000),
        "loss.centers": torch.ones(1000, 16),
        "val_acc.confmat": torch.zeros(10, 10, dtype=torch.int64),
        "val_loss.mean_value": torch.tensor(0.5),
        "val_loss.weight": torch.tensor(7.0),
        "mask": torch.ones(3, dtype=torch.bool),
        "n_averaged": torch.tensor(3),
        "version": "1.0",
        f"{wrapper}metrics.sum": torch.ones(3, dtype=torch.uint8),
        f"{wrapper}head.loss.pos_weight": torch.ones(3),
    }
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(3)}}, "lr": 0.1}
    content = {
        "state_dict": {**under(wrapper, state), **beside},
        "optimizer": optimizer,
        "scheduler": {"last": [torch.ones(1)]},
        **BESIDE,
    }
    weights = read(content)
    assert weights.file.entry == "state_dict"
    assert set(weights.file.left_out) == {"optimizer", "scheduler", *beside}
    assert torch.equal(stem(weights), state["stem.weight"])
    tensors = {name: value for name, value in content["state_dict"].items() if name != "version"}
    weights = read(in_numbered_modules(tensors, wrapper), "weights.safetensors")
    assert set(weights.file.left_out) == set(beside) - {"version"}


@pytest.mark.parametrize(
    "extra",
    [
        {"detect.weight": torch.ones(3, 16, 1, 1)},
        {"detect.weight": torch.ones(3, 16)},
        {"model.stem_act.weight": torch.ones(8)},
        {"criterion.vgg.weight": torch.ones(3, 16, 3, 3)},
        {"model.norm.weight": torch.ones(8), "model.norm.bias": torch.ones(8)},
        {"model.body.0.gamma": torch.ones(8)},
        {"model.stem.scale": torch.ones(1)},
    ],
)
def test_layers_that_the_network_lacks_are_refused(extra, read, state):
    with pytest.raises(WeightsError, match="lacks is|others beside them"):
        read({**under("model.", state), **extra})
    flat = {name.removeprefix("model."): tensor for name, tensor in extra.items()}
    with pytest.raises(WeightsError, match="lacks is|others beside them"):
        read({**state, **flat})


@pytest.mark.parametrize(
    ("averaged", "raw"),
    [("model_ema", "model"), ("swa_model", "net"), ("callbacks.EMA.weights", "state_dict")],
)
def test_averaged_entries_go_first(averaged, raw, read, state):
    content = state
    for key in reversed(averaged.split(".")):
        content = {key: content}
    for file in ({raw: half(state), **content}, {**content, raw: half(state)}):
        weights = read(file)
        assert weights.file.entry == averaged
        assert weights.file.left_out == (raw,)
        assert torch.equal(stem(weights), state["stem.weight"])


def test_averaged_weights_of_the_same_state_dict_go_first(read, state):
    both = {
        **under("model.", half(state)),
        **under("ema_model.module.", state),
        "ema_model.n_averaged": torch.tensor(3),
    }
    weights = read({"state_dict": both})
    assert torch.equal(stem(weights), state["stem.weight"])
    assert weights.file.left_out == ("model", "ema_model.n_averaged")


def test_averages_without_statistics_are_not_taken(read, state):
    parameters = {name: tensor for name, tensor in half(state).items() if "running" not in name}
    weights = read({"model": state, "ema": parameters})
    assert (weights.file.entry, weights.file.left_out) == ("model", ("ema",))


def test_two_networks_of_which_nothing_says_which_is_meant_are_refused(read, state):
    smaller = published("small_0.5").state_dict()
    for content in (
        {"teacher": state, "student": smaller},
        {**under("teacher.", state), **under("student.", smaller)},
    ):
        with pytest.raises(WeightsError, match=r"'teacher' \(small_1.0\), 'student' \(small_0.5\)"):
            read(content)
        weights = read(content, reference="small_0.5")
        assert torch.equal(stem(weights), smaller["stem.weight"])
        assert weights.file.left_out == ("teacher",)
    for content in (
        {"model": state, "best_model": half(state)},
        under("a.", state) | under("b.", half(state)),
    ):
        with pytest.raises(WeightsError, match="several networks: .*one of them alone"):
            read(content)
        with pytest.raises(WeightsError, match="several networks"):
            read(content, reference="small_1.0")


def test_the_same_weights_twice_are_one_network(read, state):
    weights = read({"model": state, "best_model": dict(state)})
    assert (weights.file.entry, weights.file.left_out) == ("model", ("best_model",))


def test_a_second_network_that_is_not_known_is_refused_beside_a_known_one(read, state):
    other = {"teacher.conv1.weight": torch.ones(64, 3, 7, 7)}
    with pytest.raises(WeightsError, match=r"small_1.0 in 'student', and others.*teacher.conv1"):
        read({**under("student.", state), **other})
    # In an entry of its own, it has nothing to do with the first one.
    assert read({"student": state, "teacher": other}).file.left_out == ("teacher",)


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_are_named(read, state):
    weight = torch.quantize_per_tensor(state["stem.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(WeightsError, match="quantised: 'stem.weight' belongs to an int8 network"):
        read({**state, "stem.weight": weight})


def test_a_damaged_file_is_not_read_in_part(read, state, tmp_path):
    read({"model": state, "optimizer": {"a": torch.arange(1000.0)}})
    content = (tmp_path / "weights.pth").read_bytes()
    values = torch.arange(1000.0).numpy().tobytes()
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        read(content.replace(values, bytes(len(values))))


def test_tensors_keep_their_values_when_the_file_is_gone(read, state):
    weights = read(state)
    weights.tensors["stem.weight"].add_(1)  # not in the content of the file
    assert torch.equal(stem(weights), state["stem.weight"] + 1)
    assert torch.equal(stem(read(state)), state["stem.weight"])
