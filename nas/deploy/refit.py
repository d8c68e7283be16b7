"""Refit: after a network was judged, it is trained again on all images but the test images.

The weights of the refit are shipped. What is said of the search and the hold-out images, which they
have learned, is computed with the weights that were judged: `nas.deploy.model.TrainedModel.judged`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from nas.data import ImageDataset
from nas.deploy.confidence import calibrate, divide_logits
from nas.deploy.exits import part_of
from nas.run.trained import Calibration
from nas.space import Architecture
from nas.space.exits import EXIT, with_exit
from nas.torch_network import Network

REFIT_FOLDER = "refit"
"""Name of the folder with the checkpoint and the log of a refit, in a model's folder."""


class TrainedParts(NamedTuple):
    """A trained network without its exit, and its part up to the exit.

    Attributes:
        network: the network.
        early: its part; None for a network without an exit, and for a linear probe.
    """

    network: Network
    early: Network | None = None

    @classmethod
    def of(cls, trained: Network, architecture: Architecture) -> TrainedParts:
        """Return the parts of a network as it was trained, see `nas.space.exits.trained_graph`."""
        if architecture.space.exit is None:
            return cls(trained)
        graphs = architecture.graph, with_exit(architecture).prefix
        return cls(*(part_of(trained, graph) for graph in graphs))

    @property
    def exit_tensors(self) -> dict[str, Tensor]:
        """The weights of the exit by name; none without an exit."""
        tensors = {} if self.early is None else self.early.tensors()
        return {name: each for name, each in tensors.items() if name.startswith(f"{EXIT}.")}

    def calibrate(self, data: ImageDataset) -> list[Calibration]:
        """Fit the temperature of each part, see `nas.deploy.confidence.calibrate`."""
        return [calibrate(each, data) for each in self if each is not None]

    def take_temperatures(self, calibrations: Iterable[Calibration]) -> None:
        """Divide the logits of each part by the temperature of the same part of another network.

        A refit has learned the images on which temperatures are fitted.
        """
        for part, calibration in zip(self, calibrations, strict=False):
            assert part is not None, "networks of one training have the same parts"
            divide_logits(part, calibration.temperature)
