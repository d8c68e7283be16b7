"""Starts a supernet from the weights of a published network, or of a trained one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nas.data import ImageDataset, Images
from nas.data.batches import sequential_batches
from nas.errors import WeightsError
from nas.graph import Graph
from nas.pretrained import PublishedWeights
from nas.pretrained.layers import weighted_ops
from nas.space import Architecture, SearchSpace
from nas.supernet.channel_order import in_order_of_importance
from nas.supernet.evaluation import (
    CALIBRATION_BATCH_SIZE,
    calibrated_state,
    choose_calibration_images,
)
from nas.supernet.probe import features_graph, image_features, probed_state
from nas.supernet.weights import NormMoments, Supernet
from nas.torch_network import NORM_EPS, Network, run_graph


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

    The channels of a trained network of a run are first ordered by their importance, see
    `nas.supernet.channel_order`. If its classes are those of `data`, it keeps its classifier.

    Kernels of a network that pads as TensorFlow does are mirrored from left to right: TensorFlow
    pads a map of an even size on its right only, and the windows of a convolution here with a
    stride begin one pixel to the left of it, as those of TensorFlow do in a mirrored image.

    Args:
        supernet: the supernet, whose space is adapted to `data`.
        published: the weights.
        data: the images that the supernet learns.

    Raises:
        WeightsError: the network is not in the supernet's space.
    """
    graph = published_graph(supernet.space, published)
    source, state = _published_network(published, supernet.space, data)
    *layers, classifier = weighted_ops(graph)
    origin = published.origin
    if origin is not None:
        if origin.classes == data.classes:
            slot_name = f"{classifier.slot_name}."
            own = published.tensors.items()
            state |= {name: tensor for name, tensor in own if name.startswith(slot_name)}
        else:
            state = probed_state(source, state, data)
        state = in_order_of_importance(source, state, supernet.space, data)
        layers.append(classifier)
    tensors = {**state, **_norms(source, state, data)}
    for op in layers:
        assert op.slot is not None
        new = tensors[f"{op.slot.name}.weight"]
        shared = supernet.get_parameter(f"{op.slot.name}.weight")
        outputs = torch.tensor(op.slot.outputs.positions)
        if op.kind == "norm":
            shared[outputs] = new.to(shared)
        else:
            inputs = torch.tensor(op.slot.inputs.positions if op.slot.inputs else [0])
            if op.kind == "conv":
                margin = (shared.shape[-1] - new.shape[-1]) // 2
                new = torch.nn.functional.pad(new, (margin,) * 4)
            shared[outputs[:, None], inputs] = new.to(shared)
        if op.bias or op.kind == "norm":
            bias = supernet.get_parameter(f"{op.slot.name}.bias")
            bias[outputs] = tensors[f"{op.slot.name}.bias"].to(bias)
    if origin is not None:
        return
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
    graph: Graph | None = None,
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
        graph: what learns; by default the network without an exit.

    Raises:
        WeightsError: the network is not in its space.
    """
    supernet = Supernet(architecture.space, torch.Generator().manual_seed(seed))
    start_from(supernet, published, data)
    return calibrated_state(supernet.to(device), graph or architecture.graph, data)


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


def published_features(
    published: PublishedWeights, space: SearchSpace, data: ImageDataset, images: Images
) -> Tensor:
    """Return what the classifier of a published network reads, `N x features`.

    Args:
        published: the weights.
        space: the network's space, adapted to `data`.
        data: the dataset of the images, which normalises them.
        images: `N` of its images.
    """
    graph, state = _published_network(published, space, data)
    return image_features(graph, state, data, images)


def _published_network(
    published: PublishedWeights, space: SearchSpace, data: ImageDataset
) -> tuple[Graph, dict[str, Tensor]]:
    """Return a published network, and its state for images that `data` normalises.

    The state has no classifier. The difference of the normalisations is a part of the first
    weights, and of the mean or the bias behind them. Zeros around an image are of another shade.
    """
    graph = replace(space, norm=published.reference.norm).reference(published.reference.name).graph
    *layers, _classifier = weighted_ops(graph)
    slots = {op.slot_name for op in layers}
    state = {
        name: tensor
        for name, tensor in published.tensors.items()
        if name.rpartition(".")[0] in slots
    }
    std = torch.tensor(published.std or (1.0,) * 3)
    shift = (torch.from_numpy(data.mean) - torch.tensor(published.mean or data.mean.tolist())) / std
    for at, op in enumerate(graph.ops):
        if op.kind != "conv" or op.slot_name not in slots:
            continue
        weight = published.tensors[f"{op.slot_name}.weight"]
        if op.inputs[0] == 0:
            offset = (weight * shift[:, None, None]).sum((1, 2, 3))
            if published.reference.norm:
                name = f"{graph.ops[graph.consumers[at][0]].slot_name}.running_mean"
                state[name] = state[name] - offset
            else:
                state[f"{op.slot_name}.bias"] = state[f"{op.slot_name}.bias"] + offset
            weight = _for_images(weight, published, data)
        if published.conventions.pads_like_tensorflow:
            weight = weight.flip(-1)
        state[f"{op.slot_name}.weight"] = weight
    return graph, state


@torch.no_grad()
def _norms(graph: Graph, state: Mapping[str, Tensor], data: ImageDataset) -> dict[str, Tensor]:
    """Return scales and shifts with which norms compute what was published, on the training images.

    The norms of a supernet take their statistics from the training images. There, a channel that
    varied much on the published network's own images may hardly vary, and a norm with the published
    scale would turn its noise into a large signal. So the scale and the shift undo the difference
    of the statistics. Those of a network without norms give back what its norms take away.

    Args:
        graph: the published network, with or without norms.
        state: its state, see `_published_network`; it may have the classifier.
        data: the images.
    """
    body = features_graph(graph)
    network = Network(body, torch.Generator()).eval()
    network.load_state_dict({name: state[name] for name in network.tensors()})
    has_norms = any(op.kind == "norm" for op in body.ops)
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

    calibration = choose_calibration_images(data.train)
    cpu = torch.device("cpu")
    for images, _ in sequential_batches(calibration, data, CALIBRATION_BATCH_SIZE, cpu):
        run_graph(body, images, network, measure)
    norms: dict[str, Tensor] = {}
    for name, (centre, variance) in moments.statistics().items():
        scale, shift = (variance + NORM_EPS).sqrt(), centre
        if has_norms:
            gain = state[f"{name}.weight"] / (state[f"{name}.running_var"] + NORM_EPS).sqrt()
            scale = gain * scale
            shift = state[f"{name}.bias"] + gain * (centre - state[f"{name}.running_mean"])
        norms[f"{name}.weight"], norms[f"{name}.bias"] = scale, shift
    return norms


def _for_images(weight: Tensor, published: PublishedWeights, data: ImageDataset) -> Tensor:
    """Return the first weights, `C x 3 x K x K`, for images that `data` normalises."""
    ours = torch.from_numpy(data.std).reshape(1, -1, 1, 1)
    theirs = torch.tensor(published.std or (1.0,) * 3).reshape(1, -1, 1, 1)
    scaled = weight * (ours / theirs)
    return scaled.sum(1, keepdim=True) if data.channels == 1 else scaled
