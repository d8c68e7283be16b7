"""Distillation: a network learns from the output of a frozen teacher as well as from the labels.

Hinton et al. 2015, "Distilling the knowledge in a neural network".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset
from nas.graph import Graph
from nas.supernet import checkpoint
from nas.supernet.evaluation import calibrated_state
from nas.supernet.optimization import adjusted
from nas.supernet.recipe import TEACHER_SHARE
from nas.supernet.weights import Supernet
from nas.torch_network import FoldedWeights, fold_norms, run_graph

MAX_REMEMBERED_BYTES = 2**28
"""Most memory for the remembered logits of a teacher."""


class Teacher:
    """A frozen network with folded batch norms, whose output another network learns.

    Networks that are trained one after the other with one seed see the same images. So on a CPU,
    a teacher remembers its output, by the pixels of a batch, and computes it once for all of them.

    Args:
        graph: the network's graph, for the images and classes of the training.
        state: state of a `Network` of the graph, with running statistics of its batch norms.

    Attributes:
        macs: multiply-accumulates for one image.
        digest: digest of the graph and its weights, without the running statistics.
    """

    def __init__(self, graph: Graph, state: Mapping[str, Tensor]) -> None:
        self.macs = graph.macs
        self.digest = f"{graph.digest}-{parameters_digest(state)}"
        self._graph = graph.folded
        self._tensors = fold_norms(graph, {name: t.detach() for name, t in state.items()})
        self._device: torch.device | None = None
        self._remembered: dict[bytes, Tensor] = {}
        self._remembered_bytes = 0

    @classmethod
    def of_supernet(cls, supernet: Supernet, data: ImageDataset) -> Teacher:
        """Return the largest subnet of a supernet, with calibrated statistics."""
        graph = supernet.space.largest.graph
        return cls(graph, calibrated_state(supernet, graph, data))

    @torch.no_grad()
    def probabilities(
        self, images: Tensor, log_priors: np.ndarray | Tensor | None = None
    ) -> Tensor:
        """Return the probabilities `N x classes` that the teacher gives to normalised images.

        Args:
            images: normalised images `N x C x H x W`.
            log_priors: see `nas.supernet.optimization.adjusted`.
        """
        if self._device != images.device:
            self._tensors = {name: t.to(images.device) for name, t in self._tensors.items()}
            self._device = images.device
        return adjusted(self._logits(images), log_priors).softmax(1)

    def _logits(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu":  # A captured step computes the same ops every time.
            return self._compute_logits(images)
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        key = hashlib.blake2b(pixels.data, digest_size=16).digest()
        logits = self._remembered.get(key)
        if logits is None:
            logits = self._compute_logits(images)
            if self._remembered_bytes + logits.nbytes <= MAX_REMEMBERED_BYTES:
                self._remembered[key] = logits
                self._remembered_bytes += logits.nbytes
        return logits

    def _compute_logits(self, images: Tensor) -> Tensor:
        return run_graph(self._graph, images, FoldedWeights(self._tensors)).flatten(1).float()


def distillation_loss(
    logits: Tensor, labels: Tensor, probabilities: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Return the weighted mean of the cross-entropies with the labels and with a teacher's output.

    Args:
        logits: output of the network in training, `N x classes`.
        labels: classes of the images, `N` (int64).
        probabilities: output of the teacher, `N x classes`.
        label_smoothing: label smoothing of the first part, in [0, 1).
    """
    label_loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    teacher_loss = F.cross_entropy(logits, probabilities)
    return (1 - TEACHER_SHARE) * label_loss + TEACHER_SHARE * teacher_loss


class Classifiers(NamedTuple):
    """Adjusted logits of the classifiers of a network in training, see `nas.space.exits`.

    Attributes:
        last: those of the last classifier, `N x classes`.
        early: those of its exit, likewise; None for a network without an exit.
    """

    last: Tensor
    early: Tensor | None

    @classmethod
    def of(
        cls, output: Tensor, classes: int, log_priors: np.ndarray | Tensor | None = None
    ) -> Classifiers:
        """Return the logits in an output of `nas.space.exits.trained_graph`.

        Args:
            output: `N x classes`, or `N x 2 classes` with those of the exit first.
            classes: number of classes.
            log_priors: see `nas.supernet.optimization.adjusted`.
        """
        *early, last = (adjusted(own, log_priors) for own in output.float().split(classes, 1))
        return cls(last, early[0] if early else None)

    def total_loss(self, loss: Tensor, labels: Tensor) -> Tensor:
        """Return a loss of the last classifier and that of the exit, which learns from the last."""
        if self.early is None:
            return loss
        return loss + distillation_loss(self.early, labels, self.last.detach().softmax(1))


def parameters_digest(state: Mapping[str, Tensor]) -> str:
    """Return a digest of a network's weights without the statistics of its batch norms.

    Statistics are sums over many images, whose rounding may depend on the number of threads.
    """
    parameters = {
        name: tensor.detach().cpu()
        for name, tensor in state.items()
        if not name.endswith((".running_mean", ".running_var"))
    }
    return checkpoint.digest(parameters)
