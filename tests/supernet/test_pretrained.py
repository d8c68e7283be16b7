"""Supernets that start from published weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset, Images
from nas.data.batches import normalize
from nas.errors import CheckpointError, WeightsError
from nas.pretrained import CONVENTIONS, Origin, PublishedWeights, read_weights
from nas.pretrained.layers import weighted_ops
from nas.space import SearchSpace
from nas.space.library import find_reference
from nas.supernet.channel_order import channel_numbers, exchangeable
from nas.supernet.evaluation import calibrated_state
from nas.supernet.pretrained import published_features, published_state, start_from
from nas.supernet.probe import image_features, probed_state
from nas.supernet.recipe import Recipe
from nas.supernet.training import train
from nas.supernet.weights import Supernet
from nas.torch_network import Network
from tests.pretrained.test_read_weights import SPACE, published
from tests.supernet.scrambled_supernet import TINY, same_weights, space_on


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


def trained_weights(network, architecture, data, *, classes=None):
    """Return the weights of a network as those of a trained one of a run, and its space."""
    space = architecture.space.with_trained("run_k", architecture.choices)
    known = as_published(space.reference_row("run_k"), architecture, network)
    origin = Origin("run:k", "noise", data.classes if classes is None else classes)
    own = {"mean": tuple(data.mean.tolist()), "std": tuple(data.std.tolist())}
    return replace(known, origin=origin, **own), space.within("run_k")


def random_network(graph, seed=0):
    """Return a network with random scales, shifts and statistics."""
    generator = torch.Generator().manual_seed(seed)
    network = Network(graph, generator).eval()
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.dim() == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def logits_of(supernet, graph, images, data):
    """Return the logits of a subnet with the statistics of the training images."""
    network = Network(graph, torch.Generator()).eval()
    network.load_state_dict(calibrated_state(supernet, graph, data))
    with torch.no_grad():
        return network(normalize(torch.from_numpy(images.pixels), data))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", TINY)
def test_largest_subnet_computes_what_the_trained_network_did(name, channels):
    data = make_data(channels)  # The training images are one batch of the calibration.
    architecture = space_on(data, name).sample(seed=1)
    network = random_network(architecture.graph)
    known, space = trained_weights(network, architecture, data)
    assert space.largest.digest == architecture.digest
    supernet = Supernet(space, torch.Generator().manual_seed(0))
    start_from(supernet, known, data)
    ours = logits_of(supernet, space.largest.graph, data.train, data)
    with torch.no_grad():
        theirs = network(normalize(torch.from_numpy(data.train.pixels), data))
    assert theirs.std(0).min() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    state = published_state(space.largest, known, data, seed=5, device=torch.device("cpu"))
    graph = space.largest.graph
    for key, tensor in supernet.extract(graph).items():
        if "running" not in key:
            assert torch.equal(tensor, state[key]), key


def test_narrow_subnets_have_the_channels_that_do_something():
    data = make_data(count=64)
    whole = space_on(data, "mobilenet_tiny")
    widest = {"stem.width": 16, "stage1.width": 32, "stage1.depth": 2}
    architecture = whole.architecture({**whole.largest.choices, **widest})
    network, graph = random_network(architecture.graph), architecture.graph
    numbers, rng = channel_numbers(graph), np.random.default_rng(3)
    for group in exchangeable(graph, numbers):
        silent = rng.permutation(list(group))[: len(group) // 2]
        for at, op in enumerate(graph.ops):
            if op.kind == "norm":
                module, out = (
                    network.slot_module(op),
                    torch.from_numpy(np.isin(numbers[at], silent)),
                )
                with torch.no_grad():
                    module.weight[out] = module.bias[out] = 0.0
    known, space = trained_weights(network, architecture, data)
    supernet = Supernet(space, torch.Generator().manual_seed(0))
    start_from(supernet, known, data)
    half = {"stem.width": 8, "stage1.width": 16}
    pruned = space.architecture({**space.largest.choices, **half})
    assert pruned.params < 0.4 * architecture.params
    with torch.no_grad():
        theirs = network(normalize(torch.from_numpy(data.train.pixels), data))
    ours = logits_of(supernet, pruned.graph, data.train, data)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_trained_network_gets_a_probe_for_other_classes():
    data = make_data()
    architecture = space_on(data, "mobilenet_tiny").adapt(classes=4).sample(seed=1)
    network = random_network(architecture.graph)
    space = space_on(data, "mobilenet_tiny").with_trained("run_k", architecture.choices)
    known, _ = trained_weights(network, architecture, data, classes=tuple("abcd"))
    space = space.within("run_k")
    supernet = Supernet(space, torch.Generator().manual_seed(0))
    start_from(supernet, known, data)
    graph = space.largest.graph
    probe = probed_state(graph, calibrated_state(supernet, graph, data), data)
    slot = graph.ops[-1].slot_name
    for key in ("weight", "bias"):
        own = supernet.get_parameter(f"{slot}.{key}")
        torch.testing.assert_close(own, probe[f"{slot}.{key}"], rtol=3e-2, atol=1e-2)


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
    settings = Recipe(epochs=1, batch_size=20)

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
