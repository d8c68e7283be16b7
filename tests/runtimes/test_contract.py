"""The contract of `nas.latency.runtime.Runtime`, for every runtime and the plug-in of the docs.

What is special to one runtime is tested in its folder.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from typing import Any

import numpy as np
import pytest

from nas.errors import DeviceError, RequestError
from nas.graph import Graph, Op
from nas.kernels.kernel import Kernel
from nas.latency import (
    LatencyTable,
    available_runtimes,
    build_table,
    configured_runtime,
    installed_runtimes,
    open_runtime,
    space_kernels,
    timing,
)
from nas.latency.record import Record
from nas.latency.runtime import Runtime
from nas.latency.timing import MEASURED, Timing
from nas.space import SearchSpace, load_space
from tests.latency.example_graphs import GRAPHS
from tests.runtimes import plugin
from tests.runtimes.outputs import (
    check_launches,
    check_network,
    first_schedules,
    random_images,
)
from tests.spaces import WITH_EVERY_BLOCK

pytest.importorskip("ethosu")


@dataclass(frozen=True)
class Case:
    """A runtime with settings.

    Args:
        name: name of the runtime.
        packages: packages whose versions its latencies depend on.
        dtype, target: settings.
        extra: extra of this project that installs the packages.
        imports: modules of other packages that its own modules import at once.
        computes: whether compiled networks have outputs.
    """

    name: str
    packages: tuple[str, ...]
    dtype: str = "float32"
    target: str = "cpu"
    extra: str = ""
    imports: tuple[str, ...] = ()
    computes: bool = True

    @property
    def settings(self) -> dict[str, Any]:
        return {"target": self.target, "dtype": self.dtype}

    def open(self, **changes: Any) -> Runtime:
        return open_runtime(self.name, **{**self.settings, **changes})


CASES = {
    "tvm": Case("tvm", ("apache-tvm",)),
    "onnxruntime": Case("onnxruntime", ("onnxruntime",)),
    "onnxruntime-int8": Case("onnxruntime", ("onnxruntime",), "int8"),
    "litert": Case("litert", ("ai-edge-litert",), extra="tflite"),
    "litert-int8": Case("litert", ("ai-edge-litert",), "int8", extra="tflite"),
    "ethos_u": Case(
        "ethos_u", ("ethos-u-vela",), "int8", "ethos-u55-128",
        extra="ethos-u", imports=("ai_edge_litert",), computes=False,
    ),
    "plug-in": Case("acme", ("acme",), target="a1"),
}  # fmt: skip

COMPUTING = [name for name, case in CASES.items() if case.computes]

THREADS = {"inverted_residual": 2, "shuffle_unit": 1, "classifier": 1, "squeeze_excite": 2}
"""Example graphs for what does not depend on the graph, with a number of threads."""


@pytest.fixture(autouse=True, scope="module")
def _plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the plug-in for this process and those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        plugin.use(tmp_path_factory, patch)
        yield


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def opened() -> dict[Case, Runtime]:
    return {}


@pytest.fixture
def runtime(case: Case, opened: dict[Case, Runtime]) -> Runtime:
    return opened.get(case) or opened.setdefault(case, case.open())


def small_space() -> SearchSpace:
    return load_space("squeezenet_tiny", image_size=8, channels=1, classes=3)


# Settings


def test_usable_runtime_names_its_packages(case: Case) -> None:
    availability = {each.name: each for each in available_runtimes()}[case.name]
    assert availability.usable
    assert availability.reason == ""
    assert set(availability.versions or ()) == set(case.packages)


def test_missing_package_is_the_reason_why_a_runtime_is_refused(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str) -> str:
        raise PackageNotFoundError(package)

    module = installed_runtimes.runtime_class(case.name).__module__
    for place in ("nas.latency.runtime", module):
        monkeypatch.setattr(f"{place}.version", missing, raising=False)
    install = rf"pip install 'hardware-nas\[{case.extra}\]'" if case.extra else ""
    reason = f"cannot be used here: {case.packages[0]} is not .*{install}"
    with pytest.raises(DeviceError, match=reason):
        case.open()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "abacus"}, "no target 'abacus'"),
        ({"dtype": "int3"}, "no dtype 'int3'"),
        ({"threads": 0}, "threads"),
        ({"threads": 100_000}, "threads"),
    ],
)
def test_settings_that_it_lacks_are_refused(case: Case, settings: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        case.open(**settings)
    assert caught.value.remedy
    if "dtype" in settings:
        assert case.dtype in caught.value.remedy
        with pytest.raises(RequestError, match=message):
            configured_runtime(case.name, **{**case.settings, **settings})


def test_unknown_runtime_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match="Allowed: acme, ethos_u, litert, onnxruntime, tvm"):
        open_runtime("tensorrt")


def test_fingerprint_has_versions_and_settings(case: Case, runtime: Runtime) -> None:
    fingerprint = runtime.fingerprint
    assert (fingerprint.runtime, fingerprint.target) == (case.name, case.target)
    assert (fingerprint.dtype, fingerprint.threads) == (case.dtype, 1)
    assert set(fingerprint.versions) >= set(case.packages)
    assert fingerprint.processor
    assert fingerprint.slug.endswith(f".{case.name}.{case.dtype}.1t.jsonl")


def test_runtime_is_pickled_with_its_settings(runtime: Runtime) -> None:
    copy = pickle.loads(pickle.dumps(runtime))
    assert type(copy) is type(runtime)
    assert copy.fingerprint == runtime.fingerprint


def test_batches_and_threads_without_kernels_are_refused(case: Case, runtime: Runtime) -> None:
    runtime.check_batch(1)
    with pytest.raises(RequestError, match="batch size is 0"):
        runtime.check_batch(0)
    if runtime.capabilities.max_batch is not None:
        with pytest.raises(RequestError, match=f"at most {runtime.capabilities.max_batch}"):
            runtime.check_batch(runtime.capabilities.max_batch + 1)


# Kernels


@pytest.mark.parametrize("name", WITH_EVERY_BLOCK)
def test_keys_are_local_and_account_for_all_macs(case: Case, name: str) -> None:
    """The kernels of a space's blocks, each by itself, contain those of its networks."""
    runtime = configured_runtime(case.name, **case.settings)
    batch = 2 if runtime.capabilities.max_batch is None else 1
    space = load_space(name, image_size=33, classes=7)
    known = set(space_kernels(space, runtime, batch))
    rng = np.random.default_rng(0)
    for architecture in (space.smallest, space.largest, *(space.sample(rng) for _ in range(4))):
        graph = architecture.graph
        kernels = runtime.kernels(graph, batch)
        assert set(kernels) <= known
        # An optimiser may put the nodes of a whole network in another order than those of blocks.
        order = (lambda each: each.text) if runtime.fused_blocks else (lambda each: 0)
        folded = runtime.kernels(graph.folded, batch)
        assert sorted(kernels, key=order) == sorted(folded, key=order), "norms change nothing"
        macs = sum(kernel.macs for kernel in kernels)
        # Nodes of model files also multiply the zeros of padded channels.
        assert macs == batch * graph.macs or (runtime.fused_blocks and macs > batch * graph.macs)
        assert [Kernel.parse(kernel.text) for kernel in kernels] == kernels


def test_unknown_op_is_named(case: Case) -> None:
    graph = Graph((Op("input", (), (4, 2, 2)), Op("warp", (0,), (4, 2, 2))))
    with pytest.raises(ValueError, match="(no kernel|of kind) .*warp"):
        configured_runtime(case.name, **case.settings).kernels(graph)


# Networks


@pytest.mark.parametrize("case", COMPUTING, indirect=True)
@pytest.mark.parametrize("name", GRAPHS)
def test_blocks_launch_their_kernels_and_compute_what_torch_computes(
    case: Case, runtime: Runtime, name: str
) -> None:
    check_network(runtime, GRAPHS[name]())


@pytest.mark.parametrize("case", COMPUTING, indirect=True)
@pytest.mark.parametrize("name", THREADS)
def test_every_image_of_a_batch_has_its_own_output(case: Case, runtime: Runtime, name: str) -> None:
    threads = min(THREADS[name], runtime.capabilities.max_threads or 2)
    check_network(case.open(threads=threads), GRAPHS[name](), batch=3)


@pytest.mark.parametrize("case", COMPUTING, indirect=True)
@pytest.mark.parametrize("name", ["mobilenet_tiny", "squeezenet_tiny"])
def test_whole_networks_compute_what_torch_computes(runtime: Runtime, name: str) -> None:
    space = load_space(name, image_size=16, classes=5)
    check_network(runtime, space.sample(seed=2, uniform_over="choices").graph)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tvm", "onnxruntime", "onnxruntime-int8"], indirect=True)
@pytest.mark.parametrize("name", WITH_EVERY_BLOCK)
def test_large_networks_launch_their_kernels(case: Case, runtime: Runtime, name: str) -> None:
    """A random network, and published ones: of those that differ only in sizes just one."""
    space = load_space(name, image_size=24)
    graphs = [space.sample(seed=3).graph]
    if case.name != "tvm":  # Compiling takes long.
        published = [space.reference(each.name).graph for each in space.references]
        graphs += {tuple((op.kind, op.inputs) for op in g.ops): g for g in published}.values()
    for graph in graphs:
        compiled = runtime.compile(graph, first_schedules(runtime, graph))
        check_launches(compiled, runtime.kernels(graph))


def test_speed_is_read_beside_networks_that_are_measured(case: Case, runtime: Runtime) -> None:
    """The contract does not know on which processor the networks of a plug-in run."""
    with runtime.timing_context():
        timed = timing.measure(lambda calls, samples: [1e-3] * samples)
    is_known = runtime.network_basis == MEASURED and case.name != "acme"
    assert (timed.reading_us is not None) == is_known


def test_networks_of_random_weights_are_timed(case: Case, runtime: Runtime) -> None:
    graph = small_space().smallest.graph
    compiled = runtime.compile(graph, first_schedules(runtime, graph))
    seconds = compiled.evaluate(2, 3)
    assert len(seconds) == 3
    assert min(seconds) > 0
    if case.computes:
        output = compiled.run(random_images(graph, 1)[0])
        assert np.isfinite(output).all()
        assert np.abs(output).max() > 1e-3
    else:
        with pytest.raises(NotImplementedError, match="cannot compute the outputs"):
            compiled.run(np.zeros(graph.input_shape, np.float32))


# Tables


BACKENDS = {"torch", "tvm", "onnx", "onnxruntime", "ai_edge_litert", "ethosu", "sklearn"}
"""Modules that a prediction does not need."""

PREDICT = """
import sys
for name in sys.argv[2:]:
    sys.modules[name] = None
from nas.latency import LatencyTable
from nas.space import load_space
space = load_space("squeezenet_tiny", image_size=8, channels=1, classes=3)
print(LatencyTable.open(sys.argv[1]).predict(space.smallest).latency_us)
"""


@pytest.mark.slow
def test_table_predicts_its_networks_without_the_runtime(
    case: Case, runtime: Runtime, tmp_path: os.PathLike, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.latency.timing.SAMPLES", 2)
    graph = small_space().smallest.graph
    kernels = runtime.kernels(graph)
    table = LatencyTable.open_or_create(tmp_path, runtime)
    with table.writing():
        for (
            part
        ) in runtime.capabilities.dispatch_parts:  # Another test times them, which takes long.
            table.append(Record.from_timings("dispatch", [Timing((1.0,) * 3)], name=part))
    assert build_table(table, kernels, runtime.timer).failed == 0
    assert {record.basis for record in table.records("kernel")} == {runtime.basis}

    opened = LatencyTable.open(table.path)
    schedules = opened.schedules()
    assert set(schedules) == set(kernels)
    assert runtime.timer.retime_kernel(kernels[0], schedules[kernels[0]]).latency_us > 0
    assert min(runtime.compile(graph, schedules).evaluate(1, 2)) > 0
    prediction = opened.predict(graph)
    assert list(prediction.kernels) == kernels
    kernels_us = sum(prediction.kernels_us)
    if runtime.capabilities.dispatch_parts:
        assert prediction.latency_us > kernels_us
    else:
        assert prediction.latency_us == pytest.approx(kernels_us)

    done = subprocess.run(
        [sys.executable, "-c", PREDICT, table.path, *(BACKENDS - {*case.imports})],
        env={**os.environ, "PATH": "/nowhere"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == prediction.latency_us


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPUTING, indirect=True)
def test_every_part_of_the_dispatch_costs_is_timed(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.latency.timing.SAMPLES", 2)
    timings = {**runtime.timer.time_dispatch(), **runtime.timer.time_miss_curve()}
    assert timings.keys() == set(runtime.capabilities.dispatch_parts)
    assert all(timing.latency_us > 0 for timing in timings.values())
