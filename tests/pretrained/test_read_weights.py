"""Files of weights of small networks: what is read, and what is refused."""

import pytest
import torch
from torch import nn

from nas.errors import SpaceError, WeightsError
from nas.pretrained import CONVENTIONS, read_weights
from tests.pretrained.small_network import SPACE, published


def renamed(state, name):
    """The tensors with other names of layers, from the position of each."""
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in state))
    return {
        f"{name(layers.index(key.rpartition('.')[0]))}.{key.rpartition('.')[2]}": tensor
        for key, tensor in state.items()
    }


def equal(read, network):
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(read.network()(images), network(images))
    return True


@pytest.mark.parametrize("name", ["small_1.0", "small_0.5"])
def test_layers_are_matched_by_their_order_and_shapes(name, read):
    network = published(name)
    # Names that sort in another order than the layers run in.
    weights = read(renamed(network.state_dict(), lambda at: f"module.{(at * 7) % 31}"))
    assert weights.reference.name == name
    assert weights.architecture.params == network.graph.params
    assert weights.sources["stem.norm"] == "module.7"
    assert not weights.differences
    assert equal(weights, network)


def test_numbers_in_names_order_the_layers_of_safetensors(read):
    network = published()
    state = renamed(network.state_dict(), lambda at: f"features.{at // 4}.layer.{at % 4}")
    weights = read(state, "x.safetensors")
    assert list(weights.sources.values()) == [
        f"features.{at // 4}.layer.{at % 4}" for at in range(15)
    ]
    assert equal(weights, network)


def test_the_shapes_order_layers_whose_names_do_not(read):
    """As in timm: norms are numbered, and convolutions differ in their shapes."""
    network = published()
    names = ["stem", "bn1"]
    for block in (0, 1):
        names += [f"blocks.{block}.{each}" for each in ("pw", "bn1", "dw", "bn2", "a_last", "bn3")]
    names.append("classifier")
    weights = read(renamed(network.state_dict(), names.__getitem__), "x.safetensors")
    assert list(weights.sources.values()) == names
    assert equal(weights, network)


def test_names_that_do_not_tell_the_order_are_refused(read):
    state = renamed(published().state_dict(), lambda at: f"layer_{'abcdefghijklmno'[at]}")
    with pytest.raises(WeightsError, match="have equal shapes, and either could be first"):
        read(state, "x.safetensors")


def test_a_classifier_can_have_any_number_of_classes(read):
    network = published(classes=7)
    weights = read(network.state_dict())
    assert weights.classes == 7
    assert equal(weights, network)


def test_half_precision_becomes_float32(read):
    network = published().half()
    weights = read(network.state_dict())
    assert {tensor.dtype for tensor in weights.tensors.values()} == {torch.float32}
    assert equal(weights, network.float())


@pytest.mark.parametrize("conventions", CONVENTIONS)
def test_norms_compute_the_same_with_another_epsilon(conventions, read):
    network = published()
    weights = read(network.state_dict(), conventions=conventions)
    epsilon = 1e-5 if conventions == "torch" else 1e-3
    x = torch.randn(2, 8, 4, 4)
    theirs, here = network.stem_norm, weights.network().stem_norm
    arguments = theirs.running_mean, theirs.running_var, theirs.weight, theirs.bias
    expected = nn.functional.batch_norm(x, *arguments, eps=epsilon)
    torch.testing.assert_close(here(x), expected)
    # Where the statistics are measured again, they are those of the data.
    torch.testing.assert_close(here.running_var, theirs.running_var, rtol=0, atol=0)


def test_padding_like_tensorflow_is_a_difference(read):
    (difference,) = read(published().state_dict(), conventions="tensorflow").differences
    assert "moved by 3 of 32 pixels" in difference


def test_conventions_that_nothing_tells_are_asked_for(read):
    with pytest.raises(WeightsError, match="of no known library.*torchvision_v3") as raised:
        read(published().state_dict(), conventions=None)
    assert raised.value.exit_status == 2


def test_a_named_network_has_to_fit(read):
    state = published("small_0.5").state_dict()
    with pytest.raises(
        WeightsError, match=r"not of small_1.0, but of small_0.5.*weight 8x3x3x3.*4x3"
    ):
        read(state, reference="small_1.0")
    with pytest.raises(SpaceError, match="Did you mean small_"):
        read(state, reference="smal_1.0")


def changed(**tensors):
    return {**published().state_dict(), **tensors}


def test_another_architecture_is_compared_with_the_nearest(read):
    with pytest.raises(WeightsError) as raised:
        read(changed(**{"body.0.depthwise.weight": torch.ones(16, 1, 7, 7)}))
    message = str(raised.value)
    assert "the nearest is small_1.0: 14 of its 15 layers" in message
    assert "missing is body.0.depthwise (weight 16x1x3x3)" in message
    assert "'body.0.depthwise' (weight 16x1x7x7)" in message


def test_a_backbone_of_another_task_is_named(read):
    state = {f"backbone.{key}": tensor for key, tensor in published().state_dict().items()}
    with pytest.raises(WeightsError, match="detection or segmentation"):
        read({**state, "rpn.weight": torch.ones(3, 16, 1, 1)})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"stem.weight": torch.ones(8, 1, 3, 3)}, "for images of 1 channels"),
        (
            {"stem.weight": torch.full((8, 3, 3, 3), torch.nan)},
            "stem.weight has values that are not",
        ),
        ({"stem_norm.running_var": -torch.ones(8)}, "stem_norm.running_var has negative"),
        ({"stem.weight": torch.ones(8, 3, 3, 3, dtype=torch.int8)}, "quantised"),
        ({"head.scale": torch.ones(1), "head.zero_point": torch.tensor(0)}, "quantised"),
        ({"stem.weight": torch.ones(8, 3, 3, 3, dtype=torch.int64)}, "int64"),
        ({"stem.weight": torch.ones(8, 3, 3, 3).to_sparse()}, "sparse"),
        ({"stem.weight": "text"}, "is str, not a tensor"),
    ],
)
def test_bad_tensors_are_refused(tensors, message, read):
    with pytest.raises(WeightsError, match=message):
        read(changed(**tensors))


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_truncated_file_is_refused(name, read, tmp_path):
    read(renamed(published().state_dict(), lambda at: f"features.{at}"), name)
    content = (tmp_path / name).read_bytes()
    for length in (len(content) // 2, len(content) - 1, 100):
        with pytest.raises(WeightsError, match="damaged or incomplete"):
            read(content[:length], name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html>Not found</html>", "a web page"),
        (b"  \n<html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
        (b"some text, longer than a header", "neither a safetensors file nor"),
        ({"epoch": 3, "optimizer": {}}, "no state dict: epoch, optimizer"),
        ([torch.ones(3)], "no state dict"),
    ],
)
def test_files_of_other_kinds_are_refused(content, message, read):
    with pytest.raises(WeightsError, match=message):
        read(content)


def test_a_whole_model_is_refused(read):
    with pytest.raises(WeightsError, match=r"nas.torch_network.Network objects.*state_dict\(\)"):
        read(published())


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(WeightsError, match="cannot be read"):
            read_weights(path, spaces=[SPACE])
