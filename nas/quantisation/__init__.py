"""Int8 versions of networks: how activations and weights are rounded, and what that computes.

- `network`: a `QuantisedNetwork`, which the writers of files read.
- `ranges`: measures the ranges of activations.
- `post_training`: makes a `QuantisedNetwork` of weights and ranges.
- `made_up`: makes one of nothing, for timings.
- `simulation`: computes in torch what a `QuantisedNetwork` computes.

This file imports nothing, because `network` is used where there is no torch.
"""
