"""The loss of distillation by hand, and teachers against the networks they are made of."""

import math

import pytest
import torch

from nas.supernet import distillation
from nas.supernet.distillation import TEACHER_SHARE, Teacher, distillation_loss
from nas.supernet.evaluation import evaluate, evaluate_network
from nas.torch_network import run_graph, to_torch
from tests.supernet.scrambled_supernet import scrambled, space_on


def teacher_of(network):
    return Teacher(network.graph, network.tensors())


def test_distillation_loss_equals_value_by_hand():
    logits = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4 and 1/4
    probabilities = torch.tensor([[0.5, 0.5]])
    label_loss = -math.log(1 / 4)
    teacher_loss = -0.5 * math.log(3 / 4) - 0.5 * math.log(1 / 4)
    expected = (1 - TEACHER_SHARE) * label_loss + TEACHER_SHARE * teacher_loss
    loss = distillation_loss(logits, torch.tensor([1]), probabilities)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    # With a smoothing of 0.2 the labels ask for 0.1 and 0.9.
    smoothed = -0.1 * math.log(3 / 4) - 0.9 * math.log(1 / 4)
    expected = (1 - TEACHER_SHARE) * smoothed + TEACHER_SHARE * teacher_loss
    loss = distillation_loss(logits, torch.tensor([1]), probabilities, 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_teacher_of_a_network_has_its_probabilities(digits):
    network = to_torch(space_on(digits, "mobilenet_tiny").sample(seed=1), seed=1)
    images = torch.randn(5, 1, 8, 8)
    network(images)  # Moves the running statistics away from 0 and 1.
    teacher = teacher_of(network.eval())
    torch.testing.assert_close(
        teacher.probabilities(images), network(images).softmax(1), atol=1e-5, rtol=1e-4
    )
    assert teacher.macs == network.graph.macs


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Return a list of the images of every run of a teacher's network."""
    runs: list[int] = []

    def run(graph, images, weights):
        runs.append(len(images))
        return run_graph(graph, images, weights)

    monkeypatch.setattr(distillation, "run_graph", run)
    return runs


def test_teacher_computes_its_output_for_the_same_pixels_once(digits, counted, monkeypatch):
    graph = space_on(digits, "mobilenet_tiny").sample(seed=1).graph
    teacher = teacher_of(to_torch(graph, seed=1))
    images = torch.randn(6, 1, 8, 8)
    first = teacher.probabilities(images)
    assert torch.equal(teacher.probabilities(images.clone()), first)
    # Another layout of the memory has the same pixels.
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(teacher.probabilities(channels_last), first)
    assert counted == [6]
    priors = torch.linspace(-1, 1, first.shape[1])
    expected = (first.log() + priors).softmax(1)
    torch.testing.assert_close(teacher.probabilities(images, priors), expected)
    assert counted == [6]
    images[3, 0, 2, 5] += 1e-3
    assert not torch.equal(teacher.probabilities(images), first)
    assert counted == [6] * 2
    monkeypatch.setattr(distillation, "MAX_REMEMBERED_BYTES", 3 * first.nbytes - 1)
    others = torch.randn(6, 1, 8, 8)
    for _ in range(2):  # There is no room for these.
        teacher.probabilities(others)
        teacher.probabilities(images)
    assert counted == [6] * 4


def test_teacher_of_a_supernet_is_its_largest_subnet(digits):
    supernet = scrambled(space_on(digits, "squeezenet_tiny"))
    teacher = Teacher.of_supernet(supernet, digits)
    pixels = torch.from_numpy(digits.search.pixels).float() / 255
    images = ((pixels - torch.from_numpy(digits.mean)) / torch.from_numpy(digits.std)).permute(
        0, 3, 1, 2
    )
    right = (teacher.probabilities(images).argmax(1).numpy() == digits.search.labels).mean()
    assert right == pytest.approx(*evaluate(supernet, [supernet.space.largest], digits), abs=0.003)


def test_digest_of_a_teacher_depends_on_weights_but_not_on_statistics(digits):
    graph = space_on(digits, "mobilenet_tiny").smallest.graph
    network = to_torch(graph, seed=0)
    first = teacher_of(network)
    network.train()(torch.randn(4, 1, 8, 8))
    assert teacher_of(network).digest == first.digest
    assert teacher_of(to_torch(graph, seed=1)).digest != first.digest
    assert 0 <= evaluate_network(network, digits) <= 1
