"""Weights of torchvision and timm compute here what they compute there.

See `tests.other_libraries` for where these libraries come from.
"""

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn

from nas.errors import WeightsError
from nas.pretrained import read_weights
from tests.other_libraries import LITE0_FILE, NO_CLASSIFIERS, OTHERS, TENSORFLOW, TIMM, lite0

CASES = {
    **{name: (name, make, None) for name, make in OTHERS.items()},
    **{f"timm's {name}": (name, make, "torch") for name, make in TIMM.items()},
    **{f"timm's tf_{name}": (name, make, "tensorflow") for name, make in TENSORFLOW.items()},
}
"""Network, function that makes it, and conventions where the file does not tell them."""

CASES |= {
    f"efficientnet_lite{number}": (*CASES[f"efficientnet_lite{number}"][:2], "torch")
    for number in range(5)
}


@pytest.mark.parametrize("case", CASES)
def test_weights_of_other_libraries_give_their_logits(case, tmp_path):
    name, make, conventions = CASES[case]
    theirs = with_statistics(make())
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")

    read = read_weights(tmp_path / "weights.pth", conventions=conventions)
    assert read.reference.name == name
    from_sorted = read_weights(tmp_path / "weights.safetensors", conventions=conventions)
    assert from_sorted.sources == read.sources
    if name.startswith("squeezenet"):
        assert any("ReLU" in each for each in read.differences)
        theirs.classifier[2] = nn.Identity()
    elif read.conventions.pads_like_tensorflow:
        assert any("images moved by" in each for each in read.differences)
    else:
        assert not read.differences

    images = torch.randn(2, 3, read.reference.image_size, read.reference.image_size)
    with torch.no_grad():
        expected = theirs(images)
        logits = padded_logits(read, images)
    torch.testing.assert_close(
        logits / expected.std(), expected / expected.std(), rtol=0, atol=1e-4
    )


def padded_logits(read, images):
    """Return the logits with the padding of the published network.

    TensorFlow pads one pixel less on the top and on the left of even maps, and this package in
    effect on the bottom and on the right, where the last window ends. So the network turned by 180
    degrees computes exactly the published logits of images turned by 180 degrees.
    """
    network = read.network()
    if read.conventions.pads_like_tensorflow:
        images = images.flip(2, 3)
        network.load_state_dict(
            {
                key: tensor.flip(2, 3) if tensor.dim() == 4 else tensor
                for key, tensor in read.tensors.items()
            }
        )
    return network(images)


def with_statistics(network):
    """Return a network in evaluation mode whose norms have the statistics of random images."""
    torch.manual_seed(0)
    norms = [each for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    with torch.no_grad():
        for layer in network.modules():
            # Norms undo it, but for their epsilon, which shows where the variance is small.
            if isinstance(layer, nn.Conv2d) and layer.bias is None:
                layer.weight *= 0.1
        for norm in norms:
            norm.momentum = None
            # Zero in some networks, in which the block before it would do nothing.
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0, 0.1)
        network.train()(torch.randn(4, 3, 128, 128))
    return network.eval()


def test_efficientnet_lite0_classifies_photos_like_the_network_of_its_package():
    theirs = lite0()
    theirs.load_state_dict(torch.load(LITE0_FILE, weights_only=True))
    read = read_weights(LITE0_FILE)
    assert read.reference.name == "efficientnet_lite0"
    assert read.license == "Apache-2.0"

    photos = [torch.from_numpy(each.copy()) for each in load_sample_images().images]
    images = torch.stack(photos).permute(0, 3, 1, 2)[:, :, :, 106:533].float() / 255
    images = nn.functional.interpolate(images, (224, 224), mode="bilinear", antialias=True)
    images = (images - read.mean[0]) / read.std[0]
    with torch.no_grad():
        expected = theirs.eval()(images)
        exact = padded_logits(read, images)
        here = read.network()(images)
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-4)
    assert torch.equal(exact.topk(5).indices, expected.topk(5).indices)
    # ImageNet's 698 is a palace, and 985 a daisy.
    assert expected.argmax(1).tolist() == [698, 985]
    assert here.argmax(1).tolist() == [698, 985]


def test_what_timm_files_do_not_tell_is_told_by_their_path_or_asked_for(tmp_path):
    state = OTHERS["efficientnet_lite0"]().state_dict()
    conventions = {}
    for name in ("efficientnet_lite0_ra-37913777.pth", "tf_efficientnet_lite0-0aa007d2.pth"):
        torch.save(state, tmp_path / name)
        conventions[name] = read_weights(tmp_path / name).conventions.name
    assert list(conventions.values()) == ["torch", "tensorflow"]
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(WeightsError, match=r"two kinds of padding.*torch .*tensorflow "):
        read_weights(tmp_path / "mine.pth")


def test_a_shufflenet_of_another_implementation_is_refused(tmp_path):
    state = OTHERS["shufflenet_v2_0.5"]().state_dict()
    torch.save({key.replace("branch2", "main"): state[key] for key in state}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="shuffle channels in another order"):
        read_weights(tmp_path / "x.pth", conventions="torch")


@pytest.mark.parametrize("task", NO_CLASSIFIERS)
def test_networks_for_detection_and_segmentation_are_refused(task, tmp_path):
    network = NO_CLASSIFIERS[task](weights=None, weights_backbone=None)
    torch.save(network.state_dict(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="detection or segmentation"):
        read_weights(tmp_path / "x.pth")
