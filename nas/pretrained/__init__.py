"""Published weights: checkpoints of known networks, as the weights of networks of this package.

`read_weights` reads a file, recognises the network by the shapes of its layers, and returns its
tensors by slot, as a `Network` and a supernet name them.
"""

from nas.pretrained.published_weights import (
    CONVENTIONS,
    Conventions,
    Origin,
    PublishedWeights,
    read_weights,
)

__all__ = ["CONVENTIONS", "Conventions", "Origin", "PublishedWeights", "read_weights"]
