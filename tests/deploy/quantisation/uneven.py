"""A network that int8 ruins: it computes what a trained one does, with very uneven channels."""

import numpy as np
import torch

from nas.deploy.model import TrainedModel
from nas.torch_network import Network
from tests.deploy.digits_models import digits_model

MODEL = "squeezenet_without_norm"


def uneven_weights():
    """Return the graph, the trained weights, and weights with scaled squeeze layers.

    A ReLU follows each squeeze layer, so that its channels can be multiplied by positive numbers if
    both layers that read them are divided by these.
    """
    model = digits_model(MODEL)
    uneven = {name: each.copy() for name, each in model.weights.items()}
    rng = np.random.default_rng(0)
    for number in (1, 2):
        factors = np.exp2(rng.uniform(-5, 5, 8)).astype(np.float32)
        uneven[f"squeeze{number}"] *= factors[:, None, None, None]
        uneven[f"squeeze{number}.bias"] *= factors
        for reader in ("small", "large"):
            uneven[f"{reader}{number}"] /= factors[None, :, None, None]
    return model.graph, model.weights, uneven


def uneven_model() -> TrainedModel:
    """Return a model with these weights."""
    graph, _, weights = uneven_weights()
    network = Network(graph, torch.Generator())
    state = {
        name if name.endswith(".bias") else f"{name}.weight": torch.from_numpy(each)
        for name, each in weights.items()
    }
    network.load_state_dict(state)
    return TrainedModel(None, network, digits_model(MODEL).preprocessing)
