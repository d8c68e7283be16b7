"""Supernets that start from published weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset, Images
from nas.data.batches import normalize
from nas.errors import CheckpointError, WeightsError
from nas.pretrained import CONVENTIONS, PublishedWeights, read_weights
from nas.pretrained.layers import weighted_ops
from nas.space import SearchSpace
from nas.space.library import find_reference
from nas.supernet.evaluation import calibrated_state
from nas.supernet.pretrained import published_features, published_state, start_from
from nas.supernet.probe import image_features, probed_state
from nas.supernet.settings import TrainingSettings
from nas.supernet.training import train
from nas.supernet.weights import Supernet
from nas.torch_network import Network
from tests.pretrained.test_read_weights import SPACE, published
from tests.supernet.scrambled_supernet import same_weights


def make_data(channels=3, count=40):
    rng = np.random.default_rng(0)

    def images():
        pixels = rng.integers(0, 256, (count, 32, 32, channels), np.uint8)
        return Images(pixels, rng.integers(0, 10, count))

    classes = tuple("0123456789")
    parts = [images() for _ in range(4)]
    return ImageDataset("noise", classes, *parts, flip_preserves_class=True)


def adapted(data) -> SearchSpace:
    return SPACE.adapt(image_size=32, channels=data.channels, classes=len(data.classes))


@pytest.fixture
def weights(tmp_path):
    def read(name="small_1.0", classes=10):
        torch.save(published(name, classes).state_dict(), tmp_path / "weights.pth")
        known = read_weights(tmp_path / "weights.pth", spaces=[SPACE], conventions="torch")
        return replace(known, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))

    return read


def as_published(row, architecture, network):
    """Return the weights of a network as those of a published one."""
    tensors, torch_way = network.tensors(), CONVENTIONS["torch"]
    return PublishedWeights(
        *(None, row, architecture, tensors, {}, torch_way, "", (), None, None, None, ())
    )


def with_published_classifier(state, known, graph):
    """The state of a network whose classifier is the published one."""
    slot = graph.ops[-1].slot_name
    return state | {f"{slot}.{key}": known.tensors[f"{slot}.{key}"] for key in ("weight", "bias")}


@pytest.mark.parametrize("name", ["small_1.0", "small_0.5"])
def test_published_network_is_a_subnet_that_computes_the_same(weights, name):
    data, known = make_data(), weights(name)
    # With another mean, the zeros around images would be another shade.
    known = replace(known, mean=tuple(data.mean.tolist()))
    supernet = Supernet(adapted(data), torch.Generator().manual_seed(0)).eval()
    start_from(supernet, known, data)
    if name == "small_1.0":
        state = supernet.state_dict()
        for kernels in (state[key] for key in state if "depthwise.w" in key):
            assert (kernels[:, :, 0] == 0).all(), "around the published 3x3 kernel"
    # Its own statistics are those of all training images, which are one batch.
    graph = supernet.space.reference(name).graph
    network = Network(graph, torch.Generator()).eval()
    state = calibrated_state(supernet, graph, data)
    network.load_state_dict(with_published_classifier(state, known, graph))
    with torch.no_grad():
        pixels = torch.from_numpy(data.train.pixels).permute(0, 3, 1, 2).float() / 255
        centred = pixels - torch.tensor(known.mean)[:, None, None]
        theirs = known.network()(centred / torch.tensor(known.std)[:, None, None])
        ours = network(centred / torch.from_numpy(data.std)[:, None, None])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["shufflenet_v1_g3", "squeezenet_1.1"])
def test_published_weights_fill_the_largest_network_of_the_space_within(name):
    whole, row = find_reference(name)
    published = whole.published(name)
    known = as_published(row, published, Network(published.graph, torch.Generator()))
    space = whole.adapt(image_size=32, classes=10).within(name)
    supernet = Supernet(space, torch.Generator())
    with torch.no_grad():
        for parameter in supernet.parameters():
            parameter.fill_(torch.nan)
    start_from(supernet, known, make_data(count=10))
    for op in weighted_ops(space.largest.graph):
        weight = supernet.get_parameter(f"{op.slot_name}.weight").detach()
        slot = op.required_slot()
        own = weight[torch.tensor(slot.outputs.positions)]
        if op.kind != "norm":
            own = own[:, torch.tensor(slot.inputs.positions if slot.inputs else [0])]
        assert own.isfinite().all(), op.slot_name


def test_norms_let_a_network_without_norms_compute_the_same():
    name, data = "small_1.0", make_data()
    without = replace(adapted(data), norm=False)
    without = replace(without, references=(replace(without.reference_row(name), norm=False),))
    network = Network(without.reference(name).graph, torch.Generator().manual_seed(0))
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.uniform_(parameter, -1, 1, torch.Generator().manual_seed(1))
    mean, std = tuple(data.mean.tolist()), (0.2, 0.3, 0.4)
    known = as_published(without.references[0], without.reference(name), network)
    known = replace(known, mean=mean, std=std)
    supernet = Supernet(replace(without, norm=True), torch.Generator())
    start_from(supernet, known, data)
    images = normalize(torch.from_numpy(data.train.pixels), data)
    graph = supernet.space.reference(name).graph
    with torch.no_grad():
        for key in ("weight", "bias"):
            slot = f"{graph.ops[-1].slot_name}.{key}"
            supernet.get_parameter(slot).copy_(known.tensors[slot])
        scale = torch.from_numpy(data.std) / torch.tensor(std)
        theirs = network(images * scale[:, None, None])
        torch.testing.assert_close(supernet(graph, images), theirs, rtol=1e-4, atol=1e-4)


def test_grey_images_take_the_sum_of_the_colours(weights):
    data, known = make_data(channels=1), weights()
    supernet = Supernet(adapted(data), torch.Generator().manual_seed(0))
    start_from(supernet, known, data)
    theirs = known.tensors["stem.weight"] / torch.tensor(known.std)[:, None, None]
    expected = float(data.std[0]) * theirs.sum(1)
    own = supernet.get_parameter("stem.weight")[:, 0].detach()
    torch.testing.assert_close(own.sort(0).values, expected.sort(0).values)


def test_state_of_a_network_is_published_and_its_classifier_a_probe(weights):
    data = make_data()
    # With another mean, the zeros around images would be another shade.
    known = replace(weights(), mean=tuple(data.mean.tolist()))
    architecture = adapted(data).reference("small_1.0")
    state = published_state(architecture, known, data, seed=0, device=torch.device("cpu"))
    again = published_state(architecture, known, data, seed=0, device=torch.device("cpu"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())
    theirs = published_features(known, architecture.space, data, data.train)
    ours = image_features(architecture.graph, state, data, data.train)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    probed = probed_state(architecture.graph, state, data)
    assert all(torch.equal(tensor, state[name]) for name, tensor in probed.items())


def test_windows_of_tensorflow_are_those_of_mirrored_images(weights):
    data = make_data()
    known = replace(weights(), conventions=CONVENTIONS["tensorflow"], std=tuple(data.std.tolist()))
    supernet = Supernet(adapted(data), torch.Generator().manual_seed(0))
    start_from(supernet, known, data)
    images, kernels = torch.rand(2, 3, 32, 32), known.tensors["stem.weight"]
    published = F.conv2d(F.pad(images, (0, 1, 1, 0)), kernels, stride=2)  # nothing on the left
    own = supernet.get_parameter("stem.weight")
    ours = F.conv2d(images.flip(-1), own, stride=2, padding=1).flip(-1)
    torch.testing.assert_close(ours, published)


def test_network_of_another_space_is_refused(weights):
    data, known = make_data(), weights()
    other = replace(adapted(data), references=())
    with pytest.raises(WeightsError, match="small_1.0, which is no network of the space small"):
        start_from(Supernet(other, torch.Generator()), known, data)


def test_training_resumes_from_the_same_weights_only(weights, tmp_path):
    data, known = make_data(), weights()
    settings = TrainingSettings(epochs=1, batch_size=20)

    def trained(folder, start):
        return train(
            adapted(data),
            data,
            tmp_path / folder,
            settings,
            seed=0,
            published=start,
            progress=False,
        )

    first = trained("first", known)
    assert same_weights(first, trained("again", known))
    assert not same_weights(first, trained("scratch", None))
    with pytest.raises(CheckpointError, match="published"):
        trained("first", None)
