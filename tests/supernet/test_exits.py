"""Training of networks with an exit: the losses of both classifiers, and what resumes."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from nas.space.exits import EXIT, trained_graph, with_exit
from nas.supernet.distillation import Classifiers
from nas.supernet.evaluation import calibrated_state, evaluate, network_logits
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import train_network
from nas.supernet.training import train
from nas.torch_network import to_torch
from tests.supernet.scrambled_supernet import same_weights, space_on

SETTINGS = Recipe(epochs=2, device="cpu", checkpoint_seconds=0)


def space_with_exit(data):
    return space_on(data, "mobilenet_tiny").with_exit("stage1")


def exit_accuracy(network, architecture, data):
    """Return the accuracy of the exit of a network on the hold-out images."""
    early = to_torch(with_exit(architecture).prefix)
    tensors = network.tensors()
    early.load_state_dict({name: tensors[name] for name in early.tensors()})
    classes = network_logits(early.eval(), data, data.holdout).argmax(1)
    return data.score(classes, data.holdout.labels)


def test_the_exit_learns_from_the_labels_and_the_last_classifier_as_without_it():
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(5, 6, generator=generator, requires_grad=True)
    labels, log_priors = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([0.5, 0.3, 0.2]).log()
    both = Classifiers.of(output, 3, log_priors)
    loss = cross_entropy(both.last, labels)
    total = both.total_loss(loss, labels)
    early, last = output[:, :3] + log_priors, output[:, 3:] + log_priors
    taught = cross_entropy(early, last.detach().softmax(1))
    torch.testing.assert_close(total, loss + (cross_entropy(early, labels) + taught) / 2)
    (own,) = torch.autograd.grad(loss, output, retain_graph=True)
    (of_both,) = torch.autograd.grad(total, output)
    torch.testing.assert_close(of_both[:, 3:], own[:, 3:])
    assert (own[:, :3] == 0).all()
    assert (of_both[:, :3] != 0).any()
    alone = Classifiers.of(output[:, 3:], 3, log_priors)
    assert alone.early is None
    assert alone.total_loss(loss, labels) is loss


@pytest.mark.slow
def test_a_supernet_trains_the_exits_of_its_subnets(digits, tmp_path):
    space = space_with_exit(digits)
    supernet = train(space, digits, tmp_path, Recipe(epochs=4, device="cpu"), seed=3)
    network = to_torch(trained_graph(space.largest))
    network.load_state_dict(calibrated_state(supernet, network.graph, digits))
    (accuracy,) = evaluate(supernet, [space.largest], digits, "holdout")
    # One of ten classes would be guessed in 10% of the images.
    assert min(accuracy, exit_accuracy(network.eval(), space.largest, digits)) > 0.2


def test_an_interrupted_training_with_an_exit_ends_with_the_same_weights(few_digits, tmp_path):
    architecture = space_with_exit(few_digits).sample(seed=2)

    def trained(folder, progress=None):
        return train_network(
            architecture, few_digits, folder, SETTINGS, seed=3, progress=progress
        ).network

    def stop(step, *_):
        if step == 5:
            raise KeyboardInterrupt

    undisturbed = trained(tmp_path / "a")
    assert {name for name in undisturbed.tensors() if name.startswith(f"{EXIT}.linear")}
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "b", stop)
    steps = []
    assert same_weights(trained(tmp_path / "b", lambda step, *_: steps.append(step)), undisturbed)
    assert steps[0] == 5  # The checkpoint of step 4 was the last one.
