"""Starts a supernet from the weights of a published network."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nas.data import ImageDataset
from nas.errors import WeightsError
from nas.graph import Graph
from nas.pretrained import PublishedWeights
from nas.pretrained.layers import weighted_ops
from nas.space import Architecture, SearchSpace
from nas.supernet.evaluation import calibrated_state, choose_calibration_images
from nas.supernet.weights import Supernet
from nas.torch_network import NORM_EPS, FoldedWeights, run_graph


def published_graph(space: SearchSpace, published: PublishedWeights) -> Graph:
    """Return a published network as a subnet of a space.

    Raises:
        WeightsError: the network is not in the space.
    """
    name = published.reference.name
    known = [reference.name for reference in space.references]
    if name not in known:
        raise WeightsError(
            f"{published.file.path} is of {name}, which is no network of the space {space.name}.",
            remedy=f"Its networks are {', '.join(known) or 'none that is published'}. "
            "`nas spaces --references` lists those of all spaces.",
        )
    return space.reference(name).graph


@torch.no_grad()
def start_from(supernet: Supernet, published: PublishedWeights, data: ImageDataset) -> None:
    """Put the weights of a published network in their places in a supernet.

    The channels keep their order: narrow subnets take the first ones. A kernel that is smaller than
    the shared one lies in its centre, with zeros around it. What the published network lacks, and
    the classifier, keep their random values; blocks of a residual stream that it lacks compute
    nothing at first, since the scale of their last norm is zero. If the published network has no
    norms, those of the supernet let it compute the same, see `_norms`.

    Kernels of a network that pads as TensorFlow does are mirrored from left to right: TensorFlow
    pads a map of an even size on its right only, and the windows of a convolution here with a
    stride begin one pixel to the left of it, as those of TensorFlow do in a mirrored image.

    The supernet's images are normalised by `data`, the published network's otherwise. The scale
    becomes a part of the first weights; the batch norm behind them removes the rest.

    Args:
        supernet: the supernet, whose space is adapted to `data`.
        published: the weights.
        data: the images that the supernet learns.

    Raises:
        WeightsError: the network is not in the supernet's space.
    """
    graph = published_graph(supernet.space, published)
    tensors = dict(published.tensors)
    if not published.reference.norm:
        tensors |= _norms(supernet.space, published, data)
    *layers, _classifier = weighted_ops(graph)
    for op in layers:
        assert op.slot is not None
        new = tensors[f"{op.slot.name}.weight"]
        shared = supernet.get_parameter(f"{op.slot.name}.weight")
        outputs = torch.tensor(op.slot.outputs.positions)
        if op.kind == "norm":
            shared[outputs] = new.to(shared)
        else:
            if op.inputs[0] == 0:
                new = _for_images(new, published, data)
            inputs = torch.tensor(op.slot.inputs.positions if op.slot.inputs else [0])
            if op.kind == "conv":
                if published.conventions.pads_like_tensorflow:
                    new = new.flip(-1)
                margin = (shared.shape[-1] - new.shape[-1]) // 2
                new = torch.nn.functional.pad(new, (margin,) * 4)
            shared[outputs[:, None], inputs] = new.to(shared)
        if op.bias or op.kind == "norm":
            bias = supernet.get_parameter(f"{op.slot.name}.bias")
            bias[outputs] = tensors[f"{op.slot.name}.bias"].to(bias)


def published_state(
    architecture: Architecture,
    published: PublishedWeights,
    data: ImageDataset,
    *,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the weights with which a published network, or a part of it, learns some images.

    They are those of a supernet that starts from the same weights, see `start_from`, with the
    statistics of the training images.

    Args:
        architecture: the published network or another one of its space, adapted to `data`.
        published: its weights.
        data: the images.
        seed: seed of the classifier, which is new.
        device: device that computes the statistics.

    Raises:
        WeightsError: the network is not in its space.
    """
    supernet = Supernet(architecture.space, torch.Generator().manual_seed(seed))
    start_from(supernet, published, data)
    return calibrated_state(supernet.to(device), architecture.graph, data)


def _norms(
    space: SearchSpace, published: PublishedWeights, data: ImageDataset
) -> dict[str, Tensor]:
    """Return scales and shifts of the norms behind the convolutions of a network without norms.

    They are the deviation and the mean of what each convolution computes from training images, its
    bias included, so that a norm gives back what it took away.
    """
    graph = replace(space, norm=False).reference(published.reference.name).graph
    weights = FoldedWeights({k.removesuffix(".weight"): v for k, v in published.tensors.items()})
    pixels = torch.from_numpy(choose_calibration_images(data.train).pixels).float() / 255
    mean = torch.tensor(published.mean or data.mean.tolist())
    images = (pixels - mean) / torch.tensor(published.std or (1.0,) * 3)
    norms: dict[str, Tensor] = {}

    def measure(position: int, output: Tensor) -> Tensor:
        op = graph.ops[position]
        if op.kind == "conv":
            variance, centre = torch.var_mean(output, (0, 2, 3), correction=0)
            norms[f"{op.slot_name}.norm.weight"] = (variance + NORM_EPS).sqrt()
            norms[f"{op.slot_name}.norm.bias"] = centre
        return output

    run_graph(graph, images.permute(0, 3, 1, 2), weights, measure)
    return norms


def _for_images(weight: Tensor, published: PublishedWeights, data: ImageDataset) -> Tensor:
    """Return the first weights, `C x 3 x K x K`, for images that `data` normalises."""
    ours = torch.from_numpy(data.std).reshape(1, -1, 1, 1)
    theirs = torch.tensor(published.std or (1.0,) * 3).reshape(1, -1, 1, 1)
    scaled = weight * (ours / theirs)
    return scaled.sum(1, keepdim=True) if data.channels == 1 else scaled
