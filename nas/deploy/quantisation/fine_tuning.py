"""Quantisation-aware fine-tuning: weights and scales that suit their own rounding.

A short training with rounded weights and activations, whose gradients pass through the rounding
(Jacob et al. 2018, section 3). The scales of the activations are trained, too, as their logarithms
(Jain et al. 2020, "Trained quantization thresholds for accurate and efficient fixed-point inference
of deep neural networks"). The float32 network is the teacher: the labels would teach the network
something else than to compute as before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas.data import ImageDataset
from nas.errors import ExportError
from nas.graph import Graph, Op
from nas.quantisation.post_training import LARGEST_WEIGHT, WeightBits
from nas.quantisation.ranges import scale_groups
from nas.quantisation.simulation import COPYING_KINDS
from nas.quantised_network import Affine
from nas.supernet.recipe import make_batches
from nas.supernet.settings import TrainingSettings
from nas.torch_device import keep_freed_memory, limit_threads, resolve_device
from nas.torch_network import FoldedWeights, run_graph

_SCALE_LEARNING_RATE = 0.01
"""Learning rate of the logarithms of scales: a scale changes by 1% in a step at most, so that the
default number of steps can change it by a factor of 7."""

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class FineTuning:
    """Settings of the fine-tuning.

    Attributes:
        steps: number of training steps; more help networks that lost much.
        batch_size: images of a step.
        learning_rate: learning rate of the weights in the first step; it decays to zero along a
            cosine.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        flip, shift: how images are mirrored and shifted; see `nas.supernet.TrainingSettings`.
    """

    steps: int = 400
    batch_size: int = 64
    learning_rate: float = 5e-4
    device: str = "auto"
    flip: bool | None = None
    shift: int | None = None


def fine_tune(
    graph: Graph,
    teacher: Weights,
    start: Weights,
    affines: Mapping[int, Affine],
    data: ImageDataset,
    weight_bits: WeightBits,
    settings: FineTuning,
    *,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> tuple[dict[str, NDArray[np.float32]], dict[int, Affine]]:
    """Return weights and scales with which the rounded network computes what the teacher does.

    The same arguments give the same result on the same machine.

    Args:
        graph: folded graph.
        teacher: weights of the network to imitate, named as in `folded_weights`.
        start: weights to start from.
        affines: scales to start from, see `QuantisedNetwork.activations`. Zero points stay.
        data: only its training split is used.
        weight_bits: bits of a weight.
        settings: length and learning rate.
        seed: seed of the order of the images and of their augmentation.
        progress: called after every step with the fraction of all steps that is done.

    Raises:
        ExportError: the loss is not finite.
        DeviceError: this machine does not have the device.
    """
    keep_freed_memory()
    device = resolve_device(settings.device)
    weights = _RoundedWeights(start, LARGEST_WEIGHT[weight_bits], device)
    activations = _RoundedActivations(graph, affines, device)
    frozen = FoldedWeights({name: torch.from_numpy(t).to(device) for name, t in teacher.items()})
    changes = TrainingSettings(
        batch_size=settings.batch_size, flip=settings.flip, shift=settings.shift
    )
    batches = make_batches(data, changes, seed, device)
    # Adam, because the weights of a folded network differ in size by orders of magnitude.
    optimizer = torch.optim.Adam(
        [
            {"params": list(weights.tensors.values()), "lr": settings.learning_rate},
            {"params": activations.logarithms, "lr": _SCALE_LEARNING_RATE},
        ]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    with limit_threads(graph.macs * batches.batch_size):
        for step in range(settings.steps):
            images, _ = batches.batch(step)
            with torch.no_grad():
                target = run_graph(graph, images, frozen).flatten(1).log_softmax(1)
            logits = run_graph(graph, images, weights, activations.rounded).flatten(1)
            loss = F.kl_div(logits.log_softmax(1), target, log_target=True, reduction="batchmean")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if not math.isfinite(loss.item()):
                raise ExportError(
                    f"Quantisation-aware fine-tuning diverged in step {step + 1} of "
                    f"{settings.steps}: loss {loss.item()}.",
                    remedy="Export in float32, or allow a larger loss of accuracy.",
                )
            optimizer.step()
            schedule.step()
            if progress:
                progress((step + 1) / settings.steps)
    return weights.arrays(), activations.affines()


class _RoundedWeights:
    """Trainable weights of a folded graph that ops read rounded. See `Weights` of `run_graph`.

    Args:
        start: initial values.
        largest: largest integer of a weight.
        device: where the weights are trained.
    """

    def __init__(self, start: Weights, largest: int, device: torch.device) -> None:
        self._largest = largest
        self.tensors: dict[str, Tensor] = {}
        for name, each in start.items():
            layout = torch.channels_last if each.ndim == 4 else torch.contiguous_format
            tensor = torch.tensor(each, device=device).contiguous(memory_format=layout)
            self.tensors[name] = tensor.requires_grad_()

    def weight(self, op: Op) -> Tensor:
        """Return the rounded weight; the scale of an output channel is that of its largest one."""
        weight = self.tensors[op.slot_name]
        scales = weight.detach().abs().flatten(1).amax(1) / self._largest
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(
            weight, scales.clamp_min(1e-12), zeros, 0, -self._largest, self._largest
        )

    def bias(self, op: Op) -> Tensor | None:
        """Return the bias, which has 32 bits and is not rounded here."""
        return self.tensors[f"{op.slot_name}.bias"] if op.bias else None

    def norm(self, op: Op, x: Tensor, activation: str | None = None) -> Tensor:
        """Raise ValueError, because a folded graph has no batch norms."""
        raise ValueError("a folded graph has no batch norms")

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the weights without their rounding."""
        return {
            name: np.ascontiguousarray(tensor.detach().cpu().numpy())
            for name, tensor in self.tensors.items()
        }


class _RoundedActivations:
    """Trainable scales of the activations.

    Args:
        graph: folded graph.
        affines: initial scales, and the zero points.
        device: where the scales are trained.

    Attributes:
        logarithms: logarithms of the scales, one for each of `scale_groups`.
    """

    def __init__(self, graph: Graph, affines: Mapping[int, Affine], device: torch.device) -> None:
        self._groups = scale_groups(graph)
        self._zero_points = {at: affines[at].zero_point for at in affines}
        self.logarithms = [
            torch.tensor(math.log(affines[group[0]].scale), device=device, requires_grad=True)
            for group in self._groups
        ]
        # A range beyond six would be wasted, and a runtime would clip in an op of its own.
        self._limits = [
            6 / 255 if any(graph.ops[at].kind == "relu6" for at in group) else math.inf
            for group in self._groups
        ]
        self._group_of = {
            at: number
            for number, group in enumerate(self._groups)
            for at in group
            if graph.ops[at].kind not in COPYING_KINDS
        }

    def rounded(self, at: int, x: Tensor) -> Tensor:
        """Round the output of an op. See the `transform` of `run_graph`.

        The gradient of the scale is that of the rounding error and of the clipping.
        """
        if at not in self._group_of:
            return x
        number = self._group_of[at]
        scale = self.logarithms[number].exp().clamp_max(self._limits[number])
        zero_point = self._zero_points[at]
        values = (x / scale).clamp(-128 - zero_point, 127 - zero_point)
        return (values + (values.round() - values).detach()) * scale

    def affines(self) -> dict[int, Affine]:
        """Return the trained scales with their zero points."""
        scales = [
            min(float(np.float32(math.exp(logarithm.item()))), limit)
            for logarithm, limit in zip(self.logarithms, self._limits, strict=True)
        ]
        return {
            at: Affine(float(np.float32(scale)), self._zero_points[at])
            for group, scale in zip(self._groups, scales, strict=True)
            for at in group
        }
