"""Int8 versions of networks: how activations and weights are rounded, and what that computes.

- `ranges`: measures the ranges of activations.
- `post_training`: makes a `nas.quantised_network.QuantisedNetwork` of weights and ranges.
- `simulation`: computes in torch what a `QuantisedNetwork` computes.

`nas.deploy.quantisation` looks for the version of a trained network that loses little accuracy.
"""

from nas.quantisation.post_training import FEW_CALIBRATION_IMAGES, clipped_share, quantise
from nas.quantisation.simulation import simulate

__all__ = ["FEW_CALIBRATION_IMAGES", "clipped_share", "quantise", "simulate"]
