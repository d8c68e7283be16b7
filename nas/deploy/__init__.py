"""Deployment: from a member of a front to trained, exported and verified files.

The parts in the order of their use:

- `model`: `TrainedModel`, a trained network with what it takes to classify images with it.
- `quantisation`: int8 weights and activations for a trained network, and their accuracy.
- `formats`: one module a file format; each writes a model and loads it with its own runtime.
- `folder`: `ModelFolder`, the folder `models/<id>/` of a run.
"""
