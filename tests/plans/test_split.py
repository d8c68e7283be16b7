"""Plans of a split against brute force over all launches, closed forms, and other runtimes."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from nas.errors import KernelError, MissingKernelError, RequestError
from nas.figures import Figure
from nas.graph import Graph
from nas.kernels import fusion
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, configured_runtime, open_runtime
from nas.plans.split import Link, SplitPlan, Way, find_cuts, halves, plan_split
from nas.plans.split_figure import draw_split
from nas.plans.split_wire import TRANSFERS
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import Architecture, load_space
from nas.torch_network import FoldedWeights, folded_weights, run_graph, to_torch
from tests.capabilities import change
from tests.latency.small_table import correction
from tests.plans.split_tables import LAUNCH_US, START_US, kernels_of_parts, write_table

SPACES = ("mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny")
HEADER = 16
IMAGE_BYTES = {"pixels": 192.0, "jpeg": 400.0}


def network_of(space: str, seed: int = 0) -> Architecture:
    return load_space(space, image_size=8, channels=3).sample(seed=seed)


def random_us(seed: int):
    """Return a function that gives each kernel a latency of its own."""

    def latency_us(kernel: Kernel) -> float:
        return round(float(np.random.default_rng([seed, *kernel.text.encode()]).uniform(1, 50)), 2)

    return latency_us


def tables(folder: Path, network: Architecture, *functions) -> list[LatencyTable]:
    kernels = kernels_of_parts(network.graph)
    return [
        write_table(folder / f"{name}.jsonl", kernels, function)
        for name, function in zip(("device", "server"), functions, strict=True)
    ]


def planned(folder: Path, network: Architecture, link: Link, *functions) -> SplitPlan:
    return plan_split(network, *tables(folder, network, *functions), link, IMAGE_BYTES)


def kernels_us(kernels, latency_us) -> float:
    return START_US + sum(latency_us(kernel) + LAUNCH_US for kernel in kernels)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("space", SPACES)
def test_cuts_are_those_between_launches_that_one_tensor_connects(space, seed, tmp_path):
    network, link = network_of(space, seed), Link(3.0, 0.25)
    device_us, server_us = random_us(10 + seed), random_us(20 + seed)
    plan = planned(tmp_path, network, link, device_us, server_us)
    launches = fusion.launches(network.graph.folded, fuse_expansions=True)
    expected = {}
    for count in range(1, len(launches)):
        first, second = launches[:count], launches[count:]
        made = {0, *(launch.result for launch in first)}
        crossing = {source for launch in second for source in launch.sources} & made
        if crossing != {first[-1].result}:
            continue
        for transfer, size in (("float32", 4), ("float16", 2), ("int8", 1)):
            sent = HEADER + size * math.prod(first[-1].kernel.output)
            expected[first[-1].result, transfer] = (
                kernels_us([each.kernel for each in first], device_us)
                + (250 + 8 * (sent + HEADER + 4 * 10) / 3.0)
                + kernels_us([each.kernel for each in second], server_us)
            )
    planned_us = {(way.position, way.transfer): way.latency_us(link) for way in plan.cuts}
    assert planned_us == pytest.approx(expected)
    assert planned_us
    whole = [launch.kernel for launch in launches]
    rivals = {way.name: way.latency_us(link) for way in plan.rivals}
    answer_us = kernels_us(whole, server_us) + 250
    assert rivals == pytest.approx(
        {
            "device": kernels_us(whole, device_us),
            "pixels": answer_us + 8 * (192 + HEADER + 40) / 3.0,
            "jpeg": answer_us + 8 * (400 + HEADER + 40) / 3.0,
        }
    )
    for transfer in TRANSFERS:
        own = {key: us for key, us in planned_us.items() if key[1] == transfer}
        best, least = plan.best(transfer), min(own.values())
        if least < min(rivals.values()):
            assert best is not None
            assert (best.position, best.transfer) == min(own, key=own.__getitem__)
        else:
            assert best is None
        assert plan.fastest(transfer).latency_us(link) == min(least, *rivals.values())


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize(
    "settings",
    [("tvm", "float32"), ("onnxruntime", "float32"), ("onnxruntime", "int8"), ("litert", "int8")],
    ids="-".join,
)
def test_kernels_of_both_parts_are_those_of_the_network(space, settings):
    name, dtype = settings
    runtime = configured_runtime(name, dtype=dtype, features=("avx2", "fma"))
    graph = network_of(space).graph.folded
    positions, refused = find_cuts(graph, [runtime])
    assert positions
    assert sorted([*positions, *refused]) == list(range(1, len(graph.ops) - 1))
    whole = Counter(runtime.kernels(graph))
    for position in positions:
        first, second = halves(graph, position)
        both = Counter(runtime.kernels(first)) + Counter(runtime.kernels(second))
        added = both - whole
        assert not whole - both
        if name == "tvm":
            assert not added
        assert sum(kernel.macs for kernel in added) == 0
        assert first.macs + second.macs == graph.macs
        assert first.params + second.params == graph.params


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("space", SPACES)
def test_onnx_runtime_launches_the_kernels_of_each_part(space, dtype):
    """Its network compares the kernels with the model that ONNX Runtime makes of a part."""
    runtime = open_runtime("onnxruntime", dtype=dtype)
    graph = network_of(space).graph.folded
    positions, _ = find_cuts(graph, [runtime])
    for position in positions:
        for part in halves(graph, position):
            assert min(runtime.compile(part, {}).evaluate(1, 1)) > 0


@pytest.mark.parametrize("space", SPACES)
def test_both_parts_compute_what_the_network_does(space):
    network = to_torch(network_of(space)).eval()
    weights = FoldedWeights(
        {name: torch.from_numpy(each) for name, each in folded_weights(network).items()}
    )
    graph = network.graph.folded
    images = torch.randn(3, *graph.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = network(images)
        for position in find_cuts(graph, [TvmRuntime()])[0]:
            x = images
            for part in halves(graph, position):
                x = run_graph(part, x, weights)
            assert torch.allclose(x.flatten(1), logits, atol=1e-5)


def scaled(factor: float):
    return lambda kernel: factor * random_us(0)(kernel)


@pytest.mark.parametrize(
    ("bandwidth", "rtt_ms", "device", "server", "winner"),
    [
        (1e12, 0.0, 10.0, 1.0, "pixels"),  # the link costs nothing: all on the faster machine
        (1e12, 0.0, 1.0, 10.0, "device"),
        (1e-9, 0.0, 10.0, 1.0, "device"),  # hardly a bit gets through
        (1e12, 1e6, 10.0, 1.0, "device"),
    ],
)
def test_extreme_links_leave_the_network_whole(bandwidth, rtt_ms, device, server, winner, tmp_path):
    link = Link(bandwidth, rtt_ms)
    plan = planned(tmp_path, network_of(SPACES[0]), link, scaled(device), scaled(server))
    for transfer in TRANSFERS:
        assert plan.fastest(transfer).name == winner
        assert plan.best(transfer) is None


def test_cut_is_best_where_each_machine_is_fast_at_its_part(tmp_path):
    network = network_of(SPACES[0])
    graph = network.graph.folded
    position = find_cuts(graph, [TvmRuntime()])[0][2]
    first = set(TvmRuntime().kernels(halves(graph, position)[0]))
    plan = planned(
        tmp_path,
        network,
        Link(1000, 0.1),
        lambda kernel: 1.0 if kernel in first else 1000.0,
        lambda kernel: 1000.0 if kernel in first else 1.0,
    )
    best = plan.best("float32")
    assert best is not None
    assert best.position == position
    assert plan.cut_at(position, "float32") == best


@pytest.mark.parametrize("space", SPACES)
def test_fastest_ways_by_bandwidth_are_those_of_each_bandwidth(space, tmp_path):
    plan = planned(tmp_path, network_of(space), Link(1.0, 0.02), scaled(10), scaled(1))
    for transfer in TRANSFERS:
        steps = plan.by_bandwidth(transfer)
        assert steps[0][0] == 0
        starts = [start for start, _ in steps]
        assert starts == sorted(starts)
        for bandwidth in np.geomspace(1e-3, 1e6, 200):
            link = Link(bandwidth, 0.02)
            way = [way for start, way in steps if start <= bandwidth][-1]
            best = plan.fastest(transfer, link).latency_us(link)
            assert way.latency_us(link) == pytest.approx(best)
    assert len(plan.by_bandwidth("int8")) > 1


def test_correction_corrects_both_parts(tmp_path):
    network = network_of(SPACES[0])
    device, server = tables(tmp_path, network, scaled(1), scaled(2))
    before = plan_split(network, device, server, Link(1, 1), IMAGE_BYTES)
    fitted = correction(2.0, dispatch_factor=0.5, spaces=(network.space.digest,))
    device._corrections[1, network.space.digest] = fitted
    after = plan_split(network, device, server, Link(1, 1), IMAGE_BYTES)
    results = [each.result for each in fusion.launches(network.graph.folded, fuse_expansions=True)]
    for old, new in zip(before.cuts, after.cuts, strict=True):
        dispatch_us = START_US + (1 + results.index(old.position)) * LAUNCH_US
        assert new.device_us == pytest.approx(2 * (old.device_us - dispatch_us) + dispatch_us / 2)
        assert new.server_us == old.server_us


def test_memory_and_figures_are_those_of_the_part_on_the_device(tmp_path, monkeypatch):
    network = network_of(SPACES[2])
    energy = Figure("energy_uj", "energy, uJ")
    change(monkeypatch, TvmRuntime, kernel_figures=(energy,))
    device, server = tables(tmp_path, network, scaled(1), scaled(1))
    monkeypatch.setattr(
        LatencyTable, "_kernel_figure", lambda table, kernel, name: kernel.macs / 100
    )
    plan = plan_split(network, device, server, Link(1, 1), IMAGE_BYTES)
    graph = network.graph.folded
    for way in plan.cuts:
        part = Graph(graph.ops[: way.position + 1])
        assert way.figures == {"energy_uj": pytest.approx(part.macs / 100)}
        assert way.memory_bytes == part.peak_memory_bytes
        biases = sum(op.shape[0] for op in part.ops if op.bias)
        assert way.weight_bytes == 4 * (part.params - biases)
    on_device, *on_server = plan.rivals
    assert on_device.figures == {"energy_uj": pytest.approx(graph.macs / 100)}
    assert on_device.memory_bytes == graph.peak_memory_bytes
    assert all(way.memory_bytes == 0 and not way.figures for way in on_server)


def test_link_adds_the_round_trip_and_the_bytes():
    assert Link(bandwidth_mbps=100, rtt_ms=20).us(1_000_000) == 20_000 + 80_000
    way = Way("device", 5.0, 0.0)
    assert way.latency_us(Link(1, 100)) == 5.0


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, math.nan, math.inf])
def test_bandwidth_is_above_zero(bandwidth):
    with pytest.raises(RequestError, match=r"bandwidth is .* --bandwidth-mbps"):
        Link(bandwidth, 1.0)


@pytest.mark.parametrize("rtt_ms", [-0.1, math.nan, math.inf])
def test_round_trip_is_not_below_zero(rtt_ms):
    with pytest.raises(RequestError, match=r"round trip takes .* --rtt-ms"):
        Link(1.0, rtt_ms)


def test_cut_inside_a_kernel_or_across_a_residual_connection_is_refused(tmp_path):
    network = network_of(SPACES[0], seed=3)
    plan = planned(tmp_path, network, Link(1, 1), scaled(1), scaled(1))
    assert network.graph.folded.counts()["add"]
    reasons = " ".join(plan.refused.values())
    assert "inside a kernel of runtime 'tvm'" in reasons
    assert "2 tensors cross there" in reasons
    positions = {way.position for way in plan.cuts}
    for position, reason in plan.refused.items():
        with pytest.raises(RequestError) as caught:
            plan.cut_at(position, "int8")
        assert reason in str(caught.value)
        assert all(str(each) in caught.value.remedy for each in positions)


@pytest.mark.parametrize("position", [-1, 0, 10_000])
def test_cut_outside_of_the_network_is_refused(position, tmp_path):
    plan = planned(tmp_path, network_of(SPACES[0]), Link(1, 1), scaled(1), scaled(1))
    with pytest.raises(RequestError, match="no op there that others follow"):
        plan.cut_at(position, "float32")


@pytest.mark.parametrize("name", ["device", "server"])
def test_table_of_another_space_is_refused(name, tmp_path):
    network, other = network_of(SPACES[0]), network_of(SPACES[2])
    both = [
        write_table(tmp_path / f"{each}.jsonl", kernels_of_parts(own.graph), scaled(1))
        for each, own in (
            ("device", other if name == "device" else network),
            ("server", other if name == "server" else network),
        )
    ]
    with pytest.raises(MissingKernelError, match=rf"{name}\.jsonl lacks \d+ of the \d+ kernels"):
        plan_split(network, *both, Link(1, 1), IMAGE_BYTES)


def test_cut_whose_parts_have_kernels_without_a_latency_is_not_known(tmp_path, monkeypatch):
    """Parts for ONNX Runtime convert the tensor at the cut, and its table may not have that."""
    network = network_of(SPACES[0])
    device, server = tables(tmp_path, network, scaled(1), scaled(1))
    plan = plan_split(network, device, server, Link(1, 1), IMAGE_BYTES)
    position = plan.cuts[0].position
    predict = device.predict

    def predict_wholes(graph: Graph):
        if len(graph.ops) == position + 1:
            raise MissingKernelError("device.jsonl has no kernel 'to_plain'.")
        return predict(graph)

    monkeypatch.setattr(device, "predict", predict_wholes)
    plan = plan_split(network, device, server, Link(1, 1), IMAGE_BYTES)
    assert plan.unknown == {position: "device.jsonl has no kernel 'to_plain'."}
    assert position not in {way.position for way in plan.cuts}
    with pytest.raises(KernelError, match=r"no latency: device\.jsonl has no kernel.*--build"):
        plan.cut_at(position, "float32")


def test_picture_has_a_line_for_each_way(tmp_path):
    plan = planned(tmp_path, network_of(SPACES[0]), Link(5, 1), scaled(1), scaled(1))
    draw_split(plan, "jc80 & others", tmp_path / "split.svg")
    text = (tmp_path / "split.svg").read_text()
    for label in (
        *("all on the device", "all on the server, pixels sent", "all on the server, JPEG sent"),
        *(f"fastest cut, {transfer} sent" for transfer in TRANSFERS),
        *("jc80 &amp; others", "round trip 1 ms"),
    ):
        assert label in text
