"""`TrainedModel`: a trained network with what it takes to classify images with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from nas.data.image_formats import IMAGE_FORMATS
from nas.data.image_reading import RULES, normalise
from nas.graph import Graph
from nas.machine.torch_device import map_batches
from nas.run.model_card import ImageReading, Preprocessing
from nas.space import Architecture
from nas.torch_network import Network, folded_weights

if TYPE_CHECKING:
    from nas.data import ImageDataset, Images
    from nas.data.image_cache import Pixels
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
        judged: the model with the weights that were judged, if these ones are of a refit.
    """

    def __init__(
        self,
        architecture: Architecture,
        network: Network,
        preprocessing: Preprocessing,
        table: LatencyTable | None = None,
        runtime: Runtime | None = None,
        judged: TrainedModel | None = None,
    ) -> None:
        self.architecture = architecture
        self.network = network.cpu().eval()
        self.preprocessing = preprocessing
        self.table = table
        self.runtime = runtime
        self._judged = judged

    @property
    def judged(self) -> TrainedModel:
        """The model with weights that did not learn the images that judge it: itself or another.

        Whatever is said of the search and the hold-out images is computed with these weights. A
        model of `nas.load_model` is itself, and has learned these images if it was refitted.
        """
        return self._judged or self

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
        return self._logits(len(images), lambda batch: images[batch])

    def pixel_logits(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the logits `N x classes` of decoded images `N x height x width x C` (uint8)."""
        how = self.preprocessing

        def normalised_batch(batch: slice) -> NDArray[np.float32]:
            return normalise(np.asarray(pixels[batch]), how.image_size, how.mean, how.std)

        return self._logits(len(pixels), normalised_batch)

    def _logits(
        self, count: int, normalised_batch: Callable[[slice], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        @torch.inference_mode()
        def part(start: int) -> torch.Tensor:
            batch = normalised_batch(slice(start, start + _BATCH_SIZE))
            logits: torch.Tensor = self.network(torch.from_numpy(batch))
            return logits

        starts, macs = range(0, count, _BATCH_SIZE), self.network.graph.macs * _BATCH_SIZE
        parts = map_batches(part, starts, macs, torch.device("cpu"))
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
        schema=3,
        reading=image_reading(data.image_size, data.background, data.resize),
        image_size=image_size or data.image_size,
        channels=data.channels,
        mean=tuple(float(value) for value in data.mean),
        std=tuple(float(value) for value in data.std),
        classes=data.classes,
        input_name="image",
        output_name="logits",
    )


def image_reading(
    decoded_size: int, background: str = "#ffffff", resize: str = "cover"
) -> ImageReading:
    """Return how `nas.data` reads image files.

    Args:
        decoded_size: height and width of the decoded images, in pixels.
        background: colour behind transparent pixels, as `#rrggbb`.
        resize: one of `nas.data.image_reading.RESIZES`.
    """
    fields = {"formats": tuple(IMAGE_FORMATS), "background": background, "resize": resize, **RULES}
    return ImageReading.model_validate({**fields, "decoded_size": decoded_size})


def normalised(images: Images, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return decoded images as the input of a network, `N x C x H x W` in float32."""
    pixels = np.asarray(images.pixels[: len(images)])
    return normalise(pixels, preprocessing.image_size, preprocessing.mean, preprocessing.std)


def preprocessing_steps(preprocessing: Preprocessing) -> list[str]:
    """Return what turns an image file into the input of a network, one sentence for each step."""
    reading = preprocessing.reading
    size, side = reading.decoded_size, reading.jpeg_draft * reading.decoded_size
    mean, std = (
        ", ".join(f"{value:.6g}" for value in values)
        for values in (preprocessing.mean, preprocessing.std)
    )
    colours = (
        "Colours become grey: 0.299 R + 0.587 G + 0.114 B."
        if preprocessing.channels == 1
        else "Grey images and palettes become RGB."
    )
    if reading.resize == "cover":
        geometry = (
            f"its shorter side has {size} pixels, and cropped to the {size} x {size} pixels in its "
            f"centre: `PIL.ImageOps.fit(image, ({size}, {size}), Image.Resampling.BILINEAR)`."
        )
    else:
        geometry = (
            f"its longer side has {size} pixels, and put in the centre of {size} x {size} pixels "
            f"of {reading.background}: `PIL.ImageOps.pad(image, ({size}, {size}), "
            f'Image.Resampling.BILINEAR, "{reading.background}")`.'
        )
    steps = [
        f"The file is opened ({', '.join(reading.formats)}; at most {reading.max_pixels} pixels). "
        f"A JPEG is decoded at the smallest of 1/8, 1/4 and 1/2 of its size at which both sides "
        f"have at least {side} pixels. Of an animation the first image counts.",
        "The image is turned as its EXIF orientation says. Its colour profile is ignored.",
        "Of 16 bits a channel the upper 8 count. Pixels of 32 bits are refused.",
        f"An image with transparency is composited on {reading.background}.",
        colours,
        f"The image is resized with bilinear interpolation and antialiasing so that {geometry}",
        f"The values are divided by 255, reduced by {mean} and divided by {std}.",
    ]
    if preprocessing.image_size != size:
        new = preprocessing.image_size
        steps.append(
            f"The result is resized to {new} x {new} values with bilinear interpolation and "
            "antialiasing, as `torch.nn.functional.interpolate` does it."
        )
    return steps
