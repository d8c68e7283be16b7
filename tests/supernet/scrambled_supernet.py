"""Spaces and supernets for the tests in this folder."""

import torch

from nas.space import load_space
from nas.supernet.weights import Supernet

TINY = ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny")


def space_on(data, name):
    """Return a space that is adapted to some data."""
    return load_space(
        name, image_size=data.image_size, channels=data.channels, classes=len(data.classes)
    )


def scrambled(space, seed=0):
    """Return a supernet with random scales, shifts and biases, unlike a new one."""
    generator = torch.Generator().manual_seed(seed)
    supernet = Supernet(space, generator)
    with torch.no_grad():
        for parameter in supernet.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return supernet


def same_weights(a, b):
    """Return whether two modules have the same weights and buffers."""
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )
