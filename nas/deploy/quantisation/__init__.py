"""Quantisation of trained networks to int8, with the accuracy that it costs.

- `ranges`: measures the ranges of activations.
- `post_training`: makes a `QuantisedNetwork` of weights and ranges.
- `simulation`: computes in torch what a `QuantisedNetwork` computes.
"""

from nas.deploy.quantisation.post_training import MIN_CALIBRATION_IMAGES, quantise
from nas.deploy.quantisation.simulation import simulate
from nas.quantised_network import Affine, QuantisedNetwork, fused_activation

__all__ = [
    "MIN_CALIBRATION_IMAGES",
    "Affine",
    "QuantisedNetwork",
    "fused_activation",
    "quantise",
    "simulate",
]
