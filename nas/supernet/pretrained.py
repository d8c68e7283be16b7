"""Starts a supernet from the weights of a published network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from nas.data import ImageDataset, Images
from nas.errors import WeightsError
from nas.graph import Graph
from nas.machine.torch_device import map_batches
from nas.pretrained import PublishedWeights
from nas.pretrained.layers import weighted_ops
from nas.space import Architecture, SearchSpace
from nas.supernet.evaluation import (
    CALIBRATION_BATCH_SIZE,
    calibrated_state,
    choose_calibration_images,
)
from nas.supernet.probe import features_graph, probed_state
from nas.supernet.weights import NormMoments, Supernet
from nas.torch_network import NORM_EPS, FoldedWeights, Network, fold_norms, run_graph


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
    the shared one lies in its centre, with zeros around it. The norms let the published network
    compute what it computed, by the statistics of the training images, see `_norms`. The classifier
    is a linear probe, see `nas.supernet.probe`. What the published network lacks keeps its random
    values; blocks of a residual stream that it lacks compute nothing at first, since the scale of
    their last norm is zero.

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
    tensors = {**published.tensors, **_norms(supernet.space, published, data)}
    *layers, classifier = weighted_ops(graph)
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
    state = probed_state(graph, calibrated_state(supernet, graph, data), data)
    slot = classifier.required_slot()
    weight, bias = (supernet.get_parameter(f"{slot.name}.{name}") for name in ("weight", "bias"))
    inputs = torch.tensor(slot.inputs.positions if slot.inputs else [0])
    weight[:, inputs] = state[f"{slot.name}.weight"].to(weight)
    bias.copy_(state[f"{slot.name}.bias"])


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
        seed: seed of what the published network lacks.
        device: device that computes the statistics.

    Raises:
        WeightsError: the network is not in its space.
    """
    supernet = Supernet(architecture.space, torch.Generator().manual_seed(seed))
    start_from(supernet, published, data)
    return calibrated_state(supernet.to(device), architecture.graph, data)


def probed_network(
    architecture: Architecture,
    published: PublishedWeights,
    data: ImageDataset,
    *,
    seed: int,
    device: torch.device,
) -> Network:
    """Return a published network, or a part of it, of which only a linear probe is trained.

    See `published_state` for the arguments and the errors.
    """
    graph = architecture.graph
    state = published_state(architecture, published, data, seed=seed, device=device)
    network = Network(graph, torch.Generator())
    network.load_state_dict(probed_state(graph, state, data))
    return network.to(device).eval()


@torch.inference_mode()
def published_features(
    published: PublishedWeights, space: SearchSpace, data: ImageDataset, images: Images
) -> Tensor:
    """Return what the classifier of a published network reads, as published, `N x features`.

    Args:
        published: the weights.
        space: the network's space, adapted to the size of the images.
        data: the dataset of the images.
        images: `N` of its images.
    """
    network = _published_body(published, space)
    graph = network.graph
    weights = FoldedWeights(fold_norms(graph, network.tensors()))

    @torch.inference_mode()
    def features(x: Tensor) -> Tensor:
        return run_graph(graph.folded, x, weights).mean((2, 3))

    batches = _published_batches(published, data, images)
    macs = CALIBRATION_BATCH_SIZE * graph.macs
    return torch.cat(map_batches(features, batches, macs, torch.device("cpu")))


def _published_body(published: PublishedWeights, space: SearchSpace) -> Network:
    """Return a published network without its classifier, in evaluation mode."""
    coloured = replace(space, norm=published.reference.norm).adapt(channels=3)
    graph = features_graph(coloured.reference(published.reference.name).graph)
    network = Network(graph, torch.Generator())
    network.load_state_dict({name: published.tensors[name] for name in network.tensors()})
    return network.eval()


def _published_batches(
    published: PublishedWeights, data: ImageDataset, images: Images
) -> Iterator[Tensor]:
    """Yield images as a published network reads them."""
    mean = torch.tensor(published.mean or data.mean.tolist())
    std = torch.tensor(published.std or (1.0,) * 3)
    for start in range(0, len(images), CALIBRATION_BATCH_SIZE):
        pixels = torch.from_numpy(images.pixels[start : start + CALIBRATION_BATCH_SIZE])
        yield ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2)


@torch.no_grad()
def _norms(
    space: SearchSpace, published: PublishedWeights, data: ImageDataset
) -> dict[str, Tensor]:
    """Return scales and shifts with which norms compute what was published, on the training images.

    The norms of a supernet take their statistics from the training images. There, a channel that
    varied much on the published network's own images may hardly vary, and a norm with the published
    scale would turn its noise into a large signal. So the scale and the shift undo the difference
    of the statistics. Those of a network without norms give back what its norms take away.
    """
    has_norms = published.reference.norm
    network = _published_body(published, space)
    body = network.graph
    moments = NormMoments()

    def measure(position: int, output: Tensor) -> Tensor:
        op = body.ops[position]
        if has_norms:
            readers = (body.ops[reader] for reader in body.consumers[position])
            names = [reader.slot_name for reader in readers if reader.kind == "norm"]
        else:
            names = [f"{op.slot_name}.norm"] if op.kind == "conv" else []
        for name in names:
            moments.add(name, output)
        return output

    for images in _published_batches(published, data, choose_calibration_images(data.train)):
        run_graph(body, images, network, measure)
    norms: dict[str, Tensor] = {}
    for name, (centre, variance) in moments.statistics().items():
        scale, shift = (variance + NORM_EPS).sqrt(), centre
        if has_norms:
            published_centre = published.tensors[f"{name}.running_mean"]
            gain = published.tensors[f"{name}.weight"]
            gain = gain / (published.tensors[f"{name}.running_var"] + NORM_EPS).sqrt()
            scale = gain * scale
            shift = published.tensors[f"{name}.bias"] + gain * (centre - published_centre)
        norms[f"{name}.weight"], norms[f"{name}.bias"] = scale, shift
    return norms


def _for_images(weight: Tensor, published: PublishedWeights, data: ImageDataset) -> Tensor:
    """Return the first weights, `C x 3 x K x K`, for images that `data` normalises."""
    ours = torch.from_numpy(data.std).reshape(1, -1, 1, 1)
    theirs = torch.tensor(published.std or (1.0,) * 3).reshape(1, -1, 1, 1)
    scaled = weight * (ours / theirs)
    return scaled.sum(1, keepdim=True) if data.channels == 1 else scaled
