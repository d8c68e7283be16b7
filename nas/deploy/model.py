"""`TrainedModel`: a trained network with what it takes to classify images with it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from nas.graph import Graph
from nas.records.model import Preprocessing
from nas.space import Architecture
from nas.torch_device import limit_threads
from nas.torch_network import Network, folded_weights, resize

if TYPE_CHECKING:
    from nas.data import ImageDataset, Images
    from nas.latency import LatencyTable, Runtime

_BATCH_SIZE = 64
"""Images of a batch when a network classifies many."""


class TrainedModel:
    """A trained network with what it takes to classify images with it.

    Args:
        architecture: the architecture of the network.
        network: the network with its trained weights; it is moved to the CPU and to evaluation
            mode.
        preprocessing: how images become its input, and what its output means.
        table: latency table of the device that the network is for, with the schedules of its
            kernels; None if there is none.
        runtime: runtime of that device, which may compile exported files for it; it is not opened.
    """

    def __init__(
        self,
        architecture: Architecture,
        network: Network,
        preprocessing: Preprocessing,
        table: LatencyTable | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        self.architecture = architecture
        self.network = network.cpu().eval()
        self.preprocessing = preprocessing
        self.table = table
        self.runtime = runtime

    @property
    def graph(self) -> Graph:
        """The graph with its batch norms folded, which all exporters write."""
        return self.network.graph.folded

    @cached_property
    def weights(self) -> Mapping[str, NDArray[np.float32]]:
        """Weights of `graph` by slot name, and biases by `<slot>.bias`; see `fold_norms`."""
        return folded_weights(self.network)

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits `N x classes` of normalised images `N x C x H x W`.

        Torch computes them in float32: the reference that every exported file is compared with.
        """
        with torch.inference_mode(), limit_threads(self.network.graph.macs * _BATCH_SIZE):
            parts = [
                self.network(torch.from_numpy(images[start : start + _BATCH_SIZE]))
                for start in range(0, len(images), _BATCH_SIZE)
            ]
        logits: NDArray[np.float32] = torch.cat(parts).numpy()
        return logits


def preprocessing_of(data: ImageDataset, image_size: int | None = None) -> Preprocessing:
    """Return how the images of a dataset become the input of a network trained on it.

    Args:
        data: the dataset.
        image_size: height and width of the network's input in pixels, which is smaller than the
            images where the resolution is a choice of the space; that of the images by default.
    """
    return Preprocessing(
        schema=1,
        image_size=image_size or data.image_size,
        channels=data.channels,
        mean=tuple(float(value) for value in data.mean),
        std=tuple(float(value) for value in data.std),
        classes=data.classes,
        input_name="image",
        output_name="logits",
    )


def normalised(images: Images, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return decoded images as the input of a network, `N x C x H x W` in float32.

    Images of another size are resized as the network was trained on them, see
    `nas.torch_network.resize`.
    """
    pixels = np.asarray(images.pixels[: len(images)], np.float32) / 255
    mean, std = (np.array(v, np.float32) for v in (preprocessing.mean, preprocessing.std))
    values = np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2))
    size = preprocessing.image_size
    return np.asarray(resize(torch.from_numpy(values), (size, size)))
