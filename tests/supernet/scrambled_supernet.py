"""Supernets and spaces for the tests beside this file."""

import torch

from nas.space import load_space
from nas.supernet import Supernet

TINY = ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny")


def space_on(data, name):
    return load_space(
        name, image_size=data.image_size, channels=data.channels, classes=len(data.classes)
    )


def scrambled(space, seed=0):
    """A supernet whose norms and biases are not those of a new one."""
    generator = torch.Generator().manual_seed(seed)
    supernet = Supernet(space, generator)
    with torch.no_grad():
        for parameter in supernet.parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return supernet
