"""`Supernet`: shared weights of a search space, from which every architecture takes slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas.errors import CheckpointError
from nas.graph import Channels, Graph, Op, Slot
from nas.machine.torch_device import map_batches
from nas.space import SearchSpace
from nas.space.library import load_shipped
from nas.supernet import checkpoint
from nas.torch_kernels import ACTIVATIONS, batch_norm
from nas.torch_network import NORM_EPS, SlotModule, residual_norms, run_graph

NormStatistics = Mapping[str, tuple[Tensor, Tensor]]
"""Mean `C` and population variance `C` of the input of each batch norm, by slot name."""

SUPERNET_FILE = "supernet.safetensors"
"""Name of the file with a trained supernet, in the supernet's folder."""


class Supernet(SlotModule):
    """Weights for all architectures of a space, shared by slicing.

    Each slot has one weight `C_out x C_in x K x K` in the largest size that occurs in the space. An
    architecture uses the channels that its graph names, and the centre of a larger kernel, as in
    Once-for-All (Cai et al. 2020) and BigNAS (Yu et al. 2020). Scale and shift of batch norms are
    shared; the statistics belong to an architecture and are computed for it (`calibrate`).

    Args:
        space: search space, adapted to the data (`SearchSpace.adapt`).
        generator: source of the initial weights.

    Attributes:
        space: the search space.
    """

    def __init__(self, space: SearchSpace, generator: torch.Generator) -> None:
        super().__init__()
        self.space = space
        zero_norms = set().union(
            *(residual_norms(graph) for graph in space.block_graphs_with_slots())
        )
        for op in _largest_ops(space):
            slot = op.required_slot()
            inputs = slot.inputs.extent if slot.inputs else 1
            if op.kind == "norm":
                scale = float(slot.name not in zero_norms)
                self.add_norm(op, slot.outputs.extent, scale=scale)
            else:
                kernel = () if op.kind == "linear" else (slot.kernel, slot.kernel)
                self.add_weight(op, (slot.outputs.extent, inputs, *kernel), generator)

    def forward(self, graph: Graph, x: Tensor, statistics: NormStatistics | None = None) -> Tensor:
        """Return the logits of a subnet.

        Args:
            graph: graph of an architecture of the space.
            x: normalised images `N x C x H x W`. If they are smaller than those of the space, the
                input of the subnet is smaller by the same factor.
            statistics: statistics of the batch norms; by default those of the batch, as in
                training.

        Returns:
            Logits `N x classes`.
        """
        scale = x.shape[2] / self.space.settings["image_size"]
        size = tuple(round(scale * pixels) for pixels in graph.input_shape[1:])
        return run_graph(graph, x, _SlicedWeights(self, statistics), size=size).flatten(1)

    def calibrate(self, graph: Graph, batches: Iterable[Tensor]) -> NormStatistics:
        """Return the statistics of a subnet's batch norms over all images of some batches.

        Every batch is normalised by its own statistics, and the moments of all batches are averaged
        exactly, instead of by a moving average ("precise batch norm", Wu and Johnson 2021,
        "Rethinking batch in batchnorm").

        Args:
            graph: graph of an architecture of the space.
            batches: normalised images `N x C x H x W`; the batches may have different sizes.
        """

        @torch.no_grad()
        def moments(batch: Tensor) -> NormMoments:
            weights = _CalibratingWeights(self)
            run_graph(graph, batch, weights)
            return weights.moments

        device = next(self.parameters()).device
        batches = list(batches)
        macs = graph.macs * max((len(batch) for batch in batches), default=0)
        return NormMoments.joined(map_batches(moments, batches, macs, device)).statistics()

    @torch.no_grad()
    def extract(self, graph: Graph, statistics: NormStatistics | None = None) -> dict[str, Tensor]:
        """Return copies of a subnet's weights, for `Network(graph).load_state_dict`.

        Args:
            graph: graph of an architecture of the space.
            statistics: statistics of the batch norms, from `calibrate`; by default mean 0 and
                variance 1, as in a new network.
        """
        weights = _SlicedWeights(self, None)
        state: dict[str, Tensor] = {}
        for op in graph.ops:
            if op.slot is None:
                continue
            name = op.slot.name
            if op.kind == "norm":
                scale, shift = weights.affine(op)
                mean, variance = (statistics or {}).get(
                    name, (torch.zeros_like(scale), torch.ones_like(scale))
                )
                state[f"{name}.weight"], state[f"{name}.bias"] = scale.clone(), shift.clone()
                state[f"{name}.running_mean"] = mean.clone()
                state[f"{name}.running_var"] = variance.clone()
                continue
            state[f"{name}.weight"] = weights.weight(op).clone()
            bias = weights.bias(op)
            if bias is not None:
                state[f"{name}.bias"] = bias.clone()
        return state

    def save(self, folder: Path, metadata: Mapping[str, object]) -> None:
        """Write the weights to `supernet.safetensors` in a folder.

        Args:
            folder: the folder; made if missing.
            metadata: further fields of `nas.supernet.records.CheckpointRecord`; must be JSON.
        """
        record = {
            **metadata,
            "space": self.space.name,
            "settings": self.space.settings,
            "space_digest": self.space.digest,
        }
        checkpoint.write(Path(folder) / SUPERNET_FILE, self.state_dict(), record)

    @classmethod
    def load(cls, folder: str | Path, space: SearchSpace | None = None) -> Supernet:
        """Return a supernet that `save` or `train` wrote, in evaluation mode, on the CPU.

        Args:
            folder: folder of the supernet, `supernets/<space>` in a run.
            space: the search space; needed only for a space that does not ship with the package.

        Raises:
            CheckpointError: the file is missing, damaged, or belongs to another space.
        """
        path = Path(folder) / SUPERNET_FILE
        tensors, record = checkpoint.read(path)
        if space is None and record.settings is not None:
            space = load_shipped(record.space, **record.settings.model_dump())
        if space is None or record.space_digest != space.digest:
            other = "an unknown one" if space is None else f"{space.name} ({space.digest})"
            raise CheckpointError(
                f"{path} belongs to space {record.space} ({record.space_digest}), not to {other}.",
                remedy="Use the space it was trained for, or train again in another folder.",
            )
        supernet = cls(space, torch.Generator())
        checkpoint.require_tensors(path, tensors, supernet.state_dict())
        supernet.load_state_dict(tensors, strict=False)
        return supernet.eval()


class _SlicedWeights:
    """Weights of a subnet, for `run_graph`: slices of the shared weights.

    Args:
        supernet: module with the shared weights.
        statistics: statistics of the batch norms; None for those of the batch.
    """

    def __init__(self, supernet: SlotModule, statistics: NormStatistics | None) -> None:
        self._supernet = supernet
        self._statistics = statistics

    def weight(self, op: Op) -> Tensor:
        slot = op.required_slot()
        shared = self._supernet.get_parameter(f"{slot.name}.weight")
        if op.kind != "conv":
            return slice_weight(shared, slot.outputs, slot.inputs)
        margin = (shared.shape[-1] - op.kernel) // 2
        centre = slice(margin, margin + op.kernel)
        return slice_weight(shared, slot.outputs, slot.inputs, (centre, centre))

    def bias(self, op: Op) -> Tensor | None:
        if not op.bias:
            return None
        slot = op.required_slot()
        return slice_weight(self._supernet.get_parameter(f"{slot.name}.bias"), slot.outputs)

    def affine(self, op: Op) -> tuple[Tensor, Tensor]:
        """Return scale `C` and shift `C` of a batch norm."""
        slot = op.required_slot()
        scale = self._supernet.get_parameter(f"{slot.name}.weight")
        shift = self._supernet.get_parameter(f"{slot.name}.bias")
        return slice_weight(scale, slot.outputs), slice_weight(shift, slot.outputs)

    def norm(self, op: Op, x: Tensor, activation: str | None = None) -> Tensor:
        scale, shift = self.affine(op)
        if self._statistics is None:
            return batch_norm(x, None, None, scale, shift, 0.0, NORM_EPS, activation)
        mean, variance = self._statistics[op.slot_name]
        x = F.batch_norm(x, mean, variance, scale, shift, False, 0.0, NORM_EPS)
        return ACTIVATIONS[activation](x) if activation else x


class NormMoments:
    """Moments of the inputs of batch norms over all images of some batches.

    Every batch is normalised by its own statistics; the moments are summed in float64.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, Tensor, Tensor]] = {}
        """By slot name: number of values, sum of the values, sum of their squares; by channel."""

    def normalise(
        self, name: str, x: Tensor, scale: Tensor, shift: Tensor, activation: str | None = None
    ) -> Tensor:
        """Return the normalised `x` (`N x C x H x W`), and add its moments to the sums.

        Args:
            name: slot name of the batch norm.
            x: input of the batch norm.
            scale: scale `C` of the batch norm.
            shift: shift `C` of the batch norm.
            activation: activation behind the batch norm.
        """
        mean, variance = torch.zeros_like(scale), torch.zeros_like(scale)
        # Momentum 1 stores the batch's own statistics, which saves a second pass over x.
        y = batch_norm(x, mean, variance, scale, shift, 1.0, NORM_EPS, activation)
        count = x.numel() // x.shape[1]
        # Torch stores the unbiased variance.
        square = variance.double() * (count - 1) / count + mean.double().square()
        self._add(name, count, count * mean.double(), count * square)
        return y

    @classmethod
    def joined(cls, parts: Iterable[NormMoments]) -> NormMoments:
        """Return the moments of the batches of all parts."""
        moments = cls()
        for part in parts:
            for name, sums in part._sums.items():
                moments._add(name, *sums)
        return moments

    def add(self, name: str, x: Tensor) -> None:
        """Add the moments of `x` (`N x C x H x W`), the input of a batch norm, to the sums."""
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        count, mean = x.numel() // x.shape[1], mean.double()
        self._add(name, count, count * mean, count * (variance.double() + mean.square()))

    def _add(self, name: str, count: int, total: Tensor, squares: Tensor) -> None:
        known = self._sums.get(name)
        if known is not None:
            count, total, squares = known[0] + count, known[1] + total, known[2] + squares
        self._sums[name] = count, total, squares

    def statistics(self) -> NormStatistics:
        """Return the statistics of each batch norm over all batches."""
        statistics = {}
        for name, (count, total, squares) in self._sums.items():
            mean = total / count
            variance = (squares / count - mean.square()).clamp_min(0)
            statistics[name] = (mean.float(), variance.float())
        return statistics


class _CalibratingWeights(_SlicedWeights):
    """Weights of a subnet that also sum up the moments of every batch norm's input."""

    def __init__(self, supernet: SlotModule) -> None:
        super().__init__(supernet, None)
        self.moments = NormMoments()

    def norm(self, op: Op, x: Tensor, activation: str | None = None) -> Tensor:
        return self.moments.normalise(op.slot_name, x, *self.affine(op), activation)


_Index = tuple[slice, ...]
"""Index of a rectangular part of a weight, a slice for each dimension."""


def slice_weight(
    weight: Tensor, outputs: Channels, inputs: Channels | None = None, rest: _Index = ()
) -> Tensor:
    """Return some channels of a shared weight, so that gradients flow back to it.

    The result is a view if the channels are contiguous, and a copy otherwise.

    Args:
        weight: shared weight `C_out x C_in x K x K`, `C_out x C_in` or `C_out`.
        outputs: channels along the first dimension.
        inputs: channels along the second dimension; all by default.
        rest: slices of the further dimensions; all of them by default.
    """
    dimensions = [(0, outputs)] if inputs is None else [(0, outputs), (1, inputs)]
    contiguous = [slice(None)] * 2
    gathered = []
    for dimension, channels in dimensions:
        if len(channels.runs) == 1:
            contiguous[dimension] = slice(*channels.runs[0])
        else:
            gathered.append((dimension, _positions(channels, weight.device)))
    index = (*contiguous, *rest)[: weight.dim()]
    if not (torch.is_grad_enabled() and weight.requires_grad):
        return _gather(weight[index], gathered)
    part: Tensor = _Slice.apply(weight, index, gathered)
    return part


@lru_cache(maxsize=4096)
def _positions(channels: Channels, device: torch.device) -> Tensor:
    """Return the positions of channels as an index."""
    return torch.tensor(channels.positions, device=device)


def _gather(part: Tensor, gathered: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Return a tensor with the given positions along each of some dimensions."""
    for dimension, positions in gathered:
        part = part.index_select(dimension, positions)
    return part


class _Slice(torch.autograd.Function):
    """A part of a weight, whose gradient is added in place to that part of the weight's gradient.

    Slicing by torch would make a gradient of the size of the whole weight, zero but for the part,
    for every subnet of a step, and add them all up.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, index: _Index, gathered: Sequence[tuple[int, Tensor]]
    ) -> Tensor:
        ctx.weight, ctx.index, ctx.gathered = weight, index, gathered
        return _gather(weight[index], gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        weight: Tensor = ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        part = weight.grad[ctx.index]
        match ctx.gathered:
            case []:
                part += gradients[0]
            case [(dimension, positions)]:
                part.index_add_(dimension, positions, gradients[0])
            case [(_, rows), (_, columns)]:
                part[rows[:, None], columns] += gradients[0]
        return None, None, None


def _largest_ops(space: SearchSpace) -> list[Op]:
    """Return one op for each slot of a space, with the slot in its largest size."""
    ops: dict[str, Op] = {}
    for graph in space.block_graphs_with_slots():
        for op in graph.ops:
            if op.slot is not None:
                known = ops.get(op.slot.name, op)
                ops[op.slot.name] = known._replace(slot=_union(known.required_slot(), op.slot))
    return list(ops.values())


def _union(a: Slot, b: Slot) -> Slot:
    """Return a slot as large as the larger one of two slots with one name, in each dimension."""
    inputs = None
    if a.inputs and b.inputs:
        inputs = Channels((), max(a.inputs.extent, b.inputs.extent))
    outputs = Channels((), max(a.outputs.extent, b.outputs.extent))
    return Slot(a.name, outputs, inputs, max(a.kernel, b.kernel))
