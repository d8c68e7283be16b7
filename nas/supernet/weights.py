"""`Supernet`: one bank of maximal weights a space, from which every architecture takes slices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nas import space as spaces
from nas.data import ImageDataset, Part
from nas.errors import CheckpointError
from nas.graph import Channels, Graph, Op, Slot
from nas.space import Architecture, SearchSpace
from nas.supernet import checkpoint
from nas.torch_network import NORM_EPS, SlotModule, residual_norms, run, slot_of

Statistics = Mapping[str, tuple[Tensor, Tensor]]
"""Mean and variance (population) of the input channels of each norm, by slot name."""

FILE = "supernet.safetensors"


class Supernet(SlotModule):
    """Weights for all architectures of a space, shared by slicing.

    A slot's bank holds the weight of its widest version, `outputs x inputs x kernel x kernel`; an
    architecture uses the channels that its graph names and the centre of a larger kernel
    (Once-for-All, Cai et al. 2020; BigNAS, Yu et al. 2020). Norms share scale and shift; statistics
    belong to an architecture and are worked out for it (`calibrate`).

    Args:
        space: adapted to the data (`SearchSpace.on`).
        generator: draws the initial weights.
    """

    def __init__(self, space: SearchSpace, generator: torch.Generator) -> None:
        super().__init__()
        self.space = space
        silent = set().union(*(residual_norms(graph) for graph in space.block_graphs_with_slots()))
        for op in _widest(space):
            slot = slot_of(op)
            inputs = slot.inputs.extent if slot.inputs else 1
            if op.kind == "norm":
                scale = float(slot.name not in silent)
                self.add_norm(op, slot.outputs.extent, scale=scale, statistics=False)
            elif op.kind == "linear":
                self.add_weight(op, (slot.outputs.extent, inputs), generator)
            else:
                shape = (slot.outputs.extent, inputs, slot.kernel, slot.kernel)
                self.add_weight(op, shape, generator)

    def forward(self, graph: Graph, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Logits `batch x classes` of normalised images `batch x channels x height x width`.

        Norms use `statistics`, or those of the batch where there are none (training).
        """
        return run(graph, x, _Sliced(self, statistics)).flatten(1)

    @torch.no_grad()
    def calibrate(self, graph: Graph, batches: Iterable[Tensor]) -> Statistics:
        """The statistics of a graph's norms over all images of `batches` together.

        Every batch runs with its own statistics, and the moments are averaged exactly instead of
        by a moving average ("precise batch norm", Wu and Johnson 2021).
        """
        weights = _Calibrating(self)
        for batch in batches:
            run(graph, batch, weights)
        return weights.statistics()

    @torch.no_grad()
    def extract(
        self, network: Architecture | Graph, statistics: Statistics | None = None
    ) -> dict[str, Tensor]:
        """Copies of a network's slices, for `Network(graph).load_state_dict`.

        Without `statistics` the norms' running statistics are those of a new network.
        """
        graph = network if isinstance(network, Graph) else self.space.lower(network)
        weights = _Sliced(self, None)
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

    def evaluate(
        self, architecture: Architecture, data: ImageDataset, part: Part = "search"
    ) -> float:
        """Accuracy of an architecture on a part of `data`; see `nas.supernet.evaluate`."""
        from nas.supernet.evaluation import evaluate

        return evaluate(self, [architecture], data, part=part)[0]

    # Files

    def save(self, folder: Path, metadata: Mapping[str, object]) -> None:
        """Writes the weights to `folder`; `metadata` is kept with them and must be JSON."""
        space = {"space": self.space.name, "settings": self.space.settings}
        record = {**metadata, **space, "space_digest": self.space.digest}
        checkpoint.write(Path(folder) / FILE, self.state_dict(), record)

    @classmethod
    def load(cls, folder: str | Path, space: SearchSpace | None = None) -> Supernet:
        """Reads what `save` or training wrote.

        Args:
            folder: the folder, `supernets/<space>` in a run.
            space: needed only for a space that does not ship with the package.

        Raises:
            CheckpointError: there is none, it is damaged, or it belongs to another space.
        """
        path = Path(folder) / FILE
        tensors, record = checkpoint.read(path)
        if space is None and record.settings is not None:
            space = spaces.load_space(record.space, **record.settings.model_dump())
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


class _Sliced:
    """Answers `run` with slices of a bank; norms use given statistics or the batch's."""

    def __init__(self, bank: SlotModule, statistics: Statistics | None) -> None:
        self._bank = bank
        self._statistics = statistics

    def weight(self, op: Op) -> Tensor:
        slot = slot_of(op)
        bank = self._bank.get_parameter(f"{slot.name}.weight")
        if op.kind != "conv":
            return take(bank, slot.outputs, slot.inputs)
        margin = (bank.shape[-1] - op.kernel) // 2
        centre = slice(margin, margin + op.kernel)
        return take(bank, slot.outputs, slot.inputs, (centre, centre))

    def bias(self, op: Op) -> Tensor | None:
        if not op.bias:
            return None
        slot = slot_of(op)
        return take(self._bank.get_parameter(f"{slot.name}.bias"), slot.outputs)

    def affine(self, op: Op) -> tuple[Tensor, Tensor]:
        """Scale and shift of a norm, `channels` each."""
        slot = slot_of(op)
        scale = self._bank.get_parameter(f"{slot.name}.weight")
        shift = self._bank.get_parameter(f"{slot.name}.bias")
        return take(scale, slot.outputs), take(shift, slot.outputs)

    def norm(self, op: Op, x: Tensor) -> Tensor:
        scale, shift = self.affine(op)
        if self._statistics is None:
            return F.batch_norm(x, None, None, scale, shift, True, 0.0, NORM_EPS)
        mean, variance = self._statistics[slot_of(op).name]
        return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, NORM_EPS)


class _Calibrating(_Sliced):
    """Normalises by the batch and adds up every norm's moments, in float64."""

    def __init__(self, bank: SlotModule) -> None:
        super().__init__(bank, None)
        self._sums: dict[str, tuple[int, Tensor, Tensor]] = {}

    def norm(self, op: Op, x: Tensor) -> Tensor:
        scale, shift = self.affine(op)
        mean, variance = torch.empty_like(scale), torch.empty_like(scale)
        # Momentum 1 leaves the batch's own statistics behind, without a second pass over x.
        y = F.batch_norm(x, mean.zero_(), variance.zero_(), scale, shift, True, 1.0, NORM_EPS)
        count = x.numel() // x.shape[1]
        # Torch keeps the unbiased variance.
        square = variance.double() * (count - 1) / count + mean.double().square()
        name = slot_of(op).name
        before = self._sums.get(name, (0, torch.zeros_like(square), torch.zeros_like(square)))
        self._sums[name] = (
            before[0] + count,
            before[1] + count * mean.double(),
            before[2] + count * square,
        )
        return y

    def statistics(self) -> Statistics:
        found = {}
        for name, (count, total, square) in self._sums.items():
            mean = total / count
            variance = (square / count - mean.square()).clamp_min(0)
            found[name] = (mean.float(), variance.float())
        return found


Place = tuple[slice, ...]
"""Of a part in a bank."""


def take(
    bank: Tensor, outputs: Channels, inputs: Channels | None = None, rest: Place = ()
) -> Tensor:
    """The named channels of a bank along its first two dimensions, and a part of the others.

    A single run of channels is a view. Its gradient goes to the bank, see `_Slice`.
    """
    columns = [slice(*each) for each in inputs.runs] if inputs else [slice(None)]
    rows = []
    for each in outputs.runs:
        parts = [_part(bank, (slice(*each), own, *rest)[: bank.dim()]) for own in columns]
        rows.append(parts[0] if len(parts) == 1 else torch.cat(parts, 1))
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _part(bank: Tensor, place: Place) -> Tensor:
    if not (torch.is_grad_enabled() and bank.requires_grad):
        return bank[place]
    found: Tensor = _Slice.apply(bank, place)
    return found


class _Slice(torch.autograd.Function):
    """A part of a bank, whose gradient is added to that part of the bank's gradient.

    Slicing by torch would make a gradient of the whole bank, zero but for the part, for every
    network of a step, and then add all of it.
    """

    @staticmethod
    def forward(ctx: Any, bank: Tensor, place: Place) -> Tensor:
        ctx.bank, ctx.place = bank, place
        return bank[place]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        bank: Tensor = ctx.bank
        if bank.grad is None:
            bank.grad = torch.zeros_like(bank)
        bank.grad[ctx.place] += gradients[0]
        return None, None


def _widest(space: SearchSpace) -> list[Op]:
    """One op a slot of the space, its slot grown to the largest extents that occur."""
    found: dict[str, Op] = {}
    for graph in space.block_graphs_with_slots():
        for op in graph.ops:
            if op.slot is not None:
                known = found.get(op.slot.name, op)
                found[op.slot.name] = known._replace(slot=_union(slot_of(known), op.slot))
    return list(found.values())


def _union(a: Slot, b: Slot) -> Slot:
    inputs = None
    if a.inputs and b.inputs:
        inputs = Channels((), max(a.inputs.extent, b.inputs.extent))
    outputs = Channels((), max(a.outputs.extent, b.outputs.extent))
    return Slot(a.name, outputs, inputs, max(a.kernel, b.kernel))
