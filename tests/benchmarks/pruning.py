"""Compare ways to make a trained network faster, at equal measured latency and equal epochs.

    python -m tests.benchmarks.pruning CIFAR10 --out pruning.json

A network is trained alone. Then, for each share of its latency:

- `within`: the space is restricted to its parts, as `[[space]] within` does; a supernet starts from
  its weights, a search finds the network, and that one is fine-tuned.
- `uniform`: the network with all widths scaled by one factor, trained alone from new weights.
- `magnitude`, `group norm`: the network pruned by Torch-Pruning (Fang et al. 2023, "DepGraph"):
  by the norm of the weights of each layer's own channels, with one ratio for all layers; and by the
  norm over all layers that have a channel, compared over the whole network. Then fine-tuned.

The network of `within` is timed, and the ratios of the others are chosen such that they are as
fast. Every network has had the same number of passes over the images, the supernet's included. All
but the trained network learn from a teacher: the supernet's largest, or the trained network.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

import nas
from nas.data import ImageDataset
from nas.graph import Graph, Op
from nas.job.folder import installed_versions
from nas.latency import LatencyTable, Runtime, build_table, open_runtime, space_kernels
from nas.latency.networks import measure_networks
from nas.latency.worker_process import timers_for
from nas.machine import this_machine
from nas.pretrained import CONVENTIONS, Origin, PublishedWeights
from nas.pretrained.weights_file import WeightsFile
from nas.space import Architecture
from nas.supernet.distillation import Teacher
from nas.supernet.evaluation import calibrated_state, evaluate_network
from nas.supernet.recipe import FINE_TUNING_RATE, Recipe, scaled_learning_rate
from nas.supernet.standalone import train_standalone
from nas.supernet.training import train
from nas.torch_kernels import ACTIVATIONS
from tests.benchmarks.pretrained import find, subset
from tests.supernet.scrambled_supernet import space_on

WAYS = ("within", "uniform", "magnitude", "group norm")

MULTIPLE = 4
"""Channels of pruned and scaled networks are multiples of this, as fast kernels want."""

BISECTIONS = 7
"""Ratios that are tried to meet a latency."""

INSTALL = (
    "Torch-Pruning is not installed, and this benchmark alone needs it: "
    "pip install --no-deps --target FOLDER torch-pruning, and set PYTHONPATH=FOLDER."
)


@dataclass(frozen=True)
class Weighted:
    """A network as plain data: its graph, and its tensors as `Network.load_state_dict` has them."""

    graph: Graph
    state: Mapping[str, Tensor] | None


class PlainNetwork(nn.Module):
    """A network of torch's own modules, which Torch-Pruning can follow."""

    def __init__(self, graph: Graph, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleDict()
        for at, op in enumerate(graph.ops):
            layer = self._layer(at, op)
            if layer is not None:
                own = {name: state.get(f"{op.slot_name}.{name}") for name in layer.state_dict()}
                layer.load_state_dict(
                    {name: own[name] for name in own if own[name] is not None}, strict=False
                )
                self.layers[str(at)] = layer

    def _layer(self, at: int, op: Op) -> nn.Module | None:
        inputs = self.graph.input_channels(op) if op.inputs else 0
        match op.kind:
            case "conv":
                return nn.Conv2d(
                    inputs,
                    op.shape[0],
                    op.kernel,
                    op.stride,
                    op.padding,
                    groups=op.groups,
                    bias=op.bias,
                )
            case "norm":
                return nn.BatchNorm2d(op.shape[0])
            case "linear":
                return nn.Linear(inputs, op.shape[0], bias=op.bias)
        return None

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for at, op in enumerate(self.graph.ops[1:], 1):
            inputs = [values[source] for source in op.inputs]
            if str(at) in self.layers:
                layer = self.layers[str(at)]
                values.append(layer(inputs[0].flatten(1) if op.kind == "linear" else inputs[0]))
            elif op.kind == "add":
                values.append(inputs[0] + inputs[1])
            elif op.kind == "global_pool":
                values.append(inputs[0].mean((2, 3), keepdim=True))
            else:
                values.append(ACTIVATIONS[op.kind](inputs[0]))
        return values[-1].flatten(1)

    def pruned(self) -> Weighted:
        """Return the network with the widths that its layers have now."""
        widths = {}
        state = {}
        for at, layer in self.layers.items():
            slot = self.graph.ops[int(at)].slot_name
            widths[slot] = len(layer.weight)  # type: ignore[arg-type]
            for name, tensor in layer.state_dict().items():
                if name != "num_batches_tracked":
                    state[f"{slot}.{name}"] = tensor.detach().clone()
        return Weighted(with_widths(self.graph, widths), state)


def with_widths(graph: Graph, widths: Mapping[str, int]) -> Graph:
    """Return a graph whose layers have other numbers of output channels, by slot."""
    ops: list[Op] = []
    for op in graph.ops:
        channels = ops[op.inputs[0]].shape[0] if op.inputs else op.shape[0]
        is_depthwise = op.kind == "conv" and op.groups > 1
        if op.kind in ("conv", "linear") and not is_depthwise:
            channels = widths[op.slot_name]
        groups = channels if is_depthwise else op.groups
        ops.append(op._replace(shape=(channels, *op.shape[1:]), groups=groups))
    return Graph(tuple(ops))


def scaled(graph: Graph, factor: float) -> Graph:
    """Return a graph with the widths of all layers but the classifier scaled by a factor."""
    layers = [op for op in graph.ops if op.kind in ("conv", "linear")]
    widths = {
        op.slot_name: max(MULTIPLE, MULTIPLE * round(factor * op.shape[0] / MULTIPLE))
        for op in layers
    }
    widths[layers[-1].slot_name] = layers[-1].shape[0]
    return with_widths(graph, widths)


def prune_with_torch_pruning(base: Weighted, ratio: float, way: str) -> Weighted:
    """Return a network pruned by Torch-Pruning: `ratio` is the share of channels that go."""
    import torch_pruning

    assert base.state is not None
    network = PlainNetwork(base.graph, base.state).eval()
    kinds = torch_pruning.importance
    is_global = way == "group norm"
    importance = (
        kinds.GroupMagnitudeImportance(p=2)
        if is_global
        else kinds.GroupMagnitudeImportance(p=1, group_reduction="first", normalizer=None)
    )
    pruner = torch_pruning.pruner.MagnitudePruner(
        network,
        torch.zeros(1, *base.graph.input_shape),
        importance=importance,
        global_pruning=is_global,
        pruning_ratio=ratio,
        max_pruning_ratio=0.9,
        round_to=MULTIPLE,
        ignored_layers=[network.layers[str(len(base.graph.ops) - 1)]],
    )
    pruner.step()
    return network.pruned()


def as_fast(
    make: Callable[[float], Weighted], latency_us: Callable[[Graph], float], target_us: float
) -> Weighted:
    """Return the network whose latency is nearest to a target; a larger number makes it faster."""
    low, high = 0.0, 0.95
    tried = {}
    for _ in range(BISECTIONS):
        ratio = (low + high) / 2
        network = make(ratio)
        own_us = latency_us(network.graph)
        tried[abs(own_us - target_us)] = network
        low, high = (ratio, high) if own_us > target_us else (low, ratio)
    return tried[min(tried)]


class Timer:
    """Times whole networks in one runtime, each once."""

    def __init__(self, runtime: Runtime, seconds: float | None) -> None:
        self._runtime, self._seconds = runtime, seconds
        self._known: dict[str, float] = {}

    def latency_us(self, graph: Graph) -> float:
        """Return the latency of a network in microseconds."""
        if graph.digest not in self._known:
            (timed,) = measure_networks([graph], self._runtime, {}, seconds=self._seconds)
            self._known[graph.digest] = timed.fastest_us
        return self._known[graph.digest]


def trained(
    network: Weighted,
    data: ImageDataset,
    settings: Recipe,
    seed: int,
    teacher: Teacher | None = None,
) -> nn.Module:
    """Return a network after its training."""
    start = network.state
    return train_standalone(network.graph, data, settings, seed=seed, start=start, teacher=teacher)


def weights_of_run(
    network: nn.Module, architecture: Architecture, data: ImageDataset
) -> tuple[PublishedWeights, Architecture]:
    """Return a network as the weights that `within` reads, and as the largest one of its space."""
    space = architecture.space.with_trained("trained", architecture.choices)
    own = space.within("trained")
    weights = PublishedWeights(
        file=WeightsFile(Path("trained"), "0" * 64, 0, False, {}),
        reference=space.reference_row("trained"),
        architecture=architecture,
        tensors={name: each.cpu() for name, each in network.tensors().items()},  # type: ignore[operator]
        sources={},
        conventions=CONVENTIONS["torch"],
        known_by="",
        also=(),
        mean=tuple(data.mean.tolist()),
        std=tuple(data.std.tolist()),
        license=None,
        differences=(),
        origin=Origin("benchmark:trained", data.source, data.classes),
    )
    return weights, own.reference("trained")


def compare(options: argparse.Namespace, data: ImageDataset, seed: int) -> list[dict[str, Any]]:
    """Return a row for each way and share of the latency, and one for the trained network."""
    whole = space_on(data, options.space)
    runtime = open_runtime("onnxruntime")
    timer = Timer(runtime, 2.0 if options.quick else None)
    rate = scaled_learning_rate(options.batch)
    first, middle, last = options.epochs

    def settings(epochs: float, *, fine_tuned: bool) -> Recipe:
        return Recipe(
            epochs=epochs,
            batch_size=options.batch,
            learning_rate=rate * (FINE_TUNING_RATE if fine_tuned else 1),
            progressive_resizing=0.0,
        )

    rows: list[dict[str, Any]] = []

    def add(way: str, share: float, network: nn.Module, graph: Graph, epochs: float) -> None:
        row = {
            "way": way,
            "share": share,
            "seed": seed,
            "latency_us": timer.latency_us(graph),
            "accuracy": evaluate_network(network, data, "holdout"),  # type: ignore[arg-type]
            "macs": graph.macs,
            "params": graph.params,
            "epochs": epochs,
        }
        rows.append(row)
        print(f"seed {seed}, {share:g}, {way}: {row['accuracy']:.1%}", flush=True)

    graph = whole.largest.graph
    base = trained(Weighted(graph, None), data, settings(first, fine_tuned=False), seed)
    add("trained", 1.0, base, graph, first)
    weights, largest = weights_of_run(base, whole.largest, data)
    base_weights = Weighted(graph, weights.tensors)
    teacher = Teacher(graph, weights.tensors)
    fine, total = settings(middle + last, fine_tuned=True), first + middle + last
    with tempfile.TemporaryDirectory() as folder:
        table = LatencyTable.open_or_create(Path(folder) / "table.jsonl", runtime)
        with timers_for(runtime) as timers:
            seconds = 40.0 if options.quick else None
            build_table(table, space_kernels(largest.space, runtime), timers, seconds=seconds)
        supernet = train(
            largest.space,
            data,
            Path(folder) / "supernet",
            settings(middle, fine_tuned=True),
            seed=seed,
            published=weights,
            progress=False,
        )

        def predicted_us(network: Architecture) -> float:
            return table.predict(network).latency_us

        own_teacher = Teacher.of_supernet(supernet, data)
        for share in options.shares:
            chosen = find(supernet, data, largest, predicted_us, share, options.networks)
            start = Weighted(chosen.graph, calibrated_state(supernet, chosen.graph, data))
            network = trained(start, data, settings(last, fine_tuned=True), seed, own_teacher)
            add("within", share, network, chosen.graph, total)
            target_us = timer.latency_us(chosen.graph)
            narrow = as_fast(
                lambda ratio: Weighted(scaled(graph, 1 - ratio), None), timer.latency_us, target_us
            )
            scratch = settings(total, fine_tuned=False)
            network = trained(narrow, data, scratch, seed, teacher)
            add("uniform", share, network, narrow.graph, total)
            for way in WAYS[2:]:
                pruned = as_fast(
                    lambda ratio, way=way: prune_with_torch_pruning(base_weights, ratio, way),
                    timer.latency_us,
                    target_us,
                )
                add(way, share, trained(pruned, data, fine, seed, teacher), pruned.graph, total)
    return rows


def report(rows: list[dict[str, Any]]) -> None:
    """Print a table of the mean accuracies and latencies over the seeds."""
    print("| share | way | latency | accuracy | MACs | parameters | epochs |")
    print("|---|---|---|---|---|---|---|")
    for share, way in dict.fromkeys((row["share"], row["way"]) for row in rows):
        own = [row for row in rows if (row["share"], row["way"]) == (share, way)]
        values = {name: mean(row[name] for row in own) for name in own[0] if name != "way"}
        print(
            f"| {share:g} | {way} | {values['latency_us'] / 1000:.3f} ms "
            f"| {values['accuracy']:.1%} | {values['macs'] / 1e6:.1f} M "
            f"| {values['params'] / 1000:.0f} k | {values['epochs']:g} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="CIFAR-10: a folder of parquet files")
    parser.add_argument("--out", type=Path, default=Path("pruning.json"))
    parser.add_argument("--space", default="mobilenet_32")
    parser.add_argument("--images", type=int, default=45_000, help="training images")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--networks", type=int, default=100, help="random networks of a search")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5, 0.35])
    parser.add_argument(
        "--epochs",
        type=float,
        nargs=3,
        default=[30, 30, 15],
        help="of the trained network, of the supernet, and of a network after it",
    )
    parser.add_argument("--quick", action="store_true", help="three minutes that show it works")
    options = parser.parse_args()
    try:
        import torch_pruning  # noqa: F401
    except ImportError:
        parser.error(INSTALL)
    if options.quick:
        options.space, options.images, options.networks = "mobilenet_tiny", 500, 6
        options.epochs, options.shares, options.seeds = [1, 1, 1], [0.5], 1
    data = nas.load_dataset(options.data, image_size=32, metric="accuracy")
    rows = []
    for seed in range(options.seeds):
        own = subset(data, options.images, seed)
        if options.quick:
            test = data.test.take(slice(0, 500))
            own = replace(own, holdout=test, test=test)
        rows += compare(options, own, seed)
        document = {
            "command": f"python -m tests.benchmarks.pruning {' '.join(sys.argv[1:])}",
            "processor": this_machine.processor()[0],
            "versions": installed_versions(),
            "images": len(own.train),
            "test_images": len(own.holdout),
            "networks": rows,
        }
        options.out.write_text(json.dumps(document, indent=1) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
