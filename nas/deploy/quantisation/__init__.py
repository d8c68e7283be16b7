"""Quantisation of trained networks to int8, with the accuracy that it costs.

- `ranges`: measures the ranges of activations.
- `post_training`: makes a `QuantisedNetwork` of weights and ranges.
- `simulation`: computes in torch what a `QuantisedNetwork` computes.
- `equalisation`, `fine_tuning`: other weights, which lose less by rounding.
- `recovery`: tries these methods until the accuracy is that of float32.
"""

from nas.deploy.quantisation.fine_tuning import FineTuning
from nas.deploy.quantisation.post_training import MIN_CALIBRATION_IMAGES, quantise
from nas.deploy.quantisation.recovery import MAX_DROP, Quantisation, quantise_within
from nas.deploy.quantisation.simulation import simulate
from nas.quantised_network import Affine, QuantisedNetwork, fused_activation

__all__ = [
    "MAX_DROP",
    "MIN_CALIBRATION_IMAGES",
    "Affine",
    "FineTuning",
    "Quantisation",
    "QuantisedNetwork",
    "fused_activation",
    "quantise",
    "quantise_within",
    "simulate",
]
