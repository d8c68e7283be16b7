"""How GPU latencies are taken and composed, on a simulated GPU, and what networks compile to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import nas.space
from nas.errors import DeviceError, MeasurementError, RequestError
from nas.graph import Graph
from nas.latency import fusion
from nas.latency.cache_model import DispatchCosts
from nas.latency.kernel import Kernel
from nas.latency.runtime import NetworkCost, configured_runtime
from nas.runtimes.tvm import targets
from nas.runtimes.tvm.cuda import device as cuda_device
from nas.runtimes.tvm.cuda import queue
from nas.runtimes.tvm.relax_network import RelaxNetwork
from nas.runtimes.tvm.runtime import CudaRuntime, TvmRuntime, pipeline_us
from nas.schedules.cuda.templates import CudaTemplates
from nas.schedules.templates import Expansion
from nas.torch_network import Network, folded_weights
from tests.latency.networks import GRAPHS
from tests.runtimes.tvm.cuda.simulated_gpu import STEP_S, SimulatedGpu
from tests.schedules.cuda.cuda_emulator import EmulatedKernels
from tests.schedules.kernel_reference import flat

TINY = Kernel.parse("copy 8x2x2 -> 8x2x2 relu")


def test_batches_are_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_on(SimulatedGpu(), monkeypatch, "float32")
    runtime.check_batch(1)
    with pytest.raises(RequestError, match="batch size is 4, .* at most 1 on target 'cuda'"):
        runtime.check_batch(4)
    four = Kernel.parse("copy batch4 8x2x2 -> 8x2x2 relu")
    with pytest.raises(ValueError, match="for one image"):
        runtime.timer.templates.function(four, runtime.timer.templates.candidates(four)[0], "it")


def runtime_on(gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch, dtype: str) -> CudaRuntime:
    templates = CudaTemplates.for_arch("sm_80", dtype)
    monkeypatch.setattr(targets, "resolve", lambda *settings: (templates, gpu))
    monkeypatch.setattr(queue, "time", SimpleNamespace(perf_counter=lambda: gpu.now))
    return CudaRuntime(target="cuda", dtype=dtype)


def test_network_of_short_kernels_takes_as_long_as_launching_them() -> None:
    assert pipeline_us([1.0, 2.0, 1.5], 4.0, 10.0) == pytest.approx(10 + 2 * 4 + 1.5)


def test_network_of_long_kernels_takes_as_long_as_the_kernels() -> None:
    assert pipeline_us([50.0, 20.0, 9.0], 4.0, 10.0) == pytest.approx(10 + 79)


def test_launches_hide_behind_a_long_kernel() -> None:
    # The second and third are queued when the first ends; the last is launched at 10 + 3 * 4.
    assert pipeline_us([8.5, 1.0, 1.0, 1.0], 4.0, 10.0) == pytest.approx(23.0)
    assert pipeline_us([20.0, 1.0, 1.0, 1.0], 4.0, 10.0) == pytest.approx(33.0)


def test_tables_of_gpus_predict_with_the_gpu_runtime() -> None:
    gpu = configured_runtime("tvm", target="cuda", dtype="float16", features=("cuda", "sm_80"))
    assert type(gpu) is CudaRuntime
    assert type(configured_runtime("tvm", features=("avx2",))) is TvmRuntime
    graph = GRAPHS["inverted_residual"]()
    assert gpu.kernels(graph) == TvmRuntime().kernels(graph)
    with pytest.raises(RequestError, match="no dtype 'int4'"):
        configured_runtime("tvm", target="cuda", dtype="int4")


def test_a_kernel_shorter_than_its_launch_is_timed_without_it() -> None:
    for kernel_s in (3e-7, 2e-6, 4e-5):
        gpu = SimulatedGpu(kernel_s=kernel_s)
        templates = CudaTemplates.for_arch("sm_80", "float32")
        # The host's clock does not move: launching takes no time, as seen by the host.
        evaluate = queue.behind_a_plug(TINY, templates.candidates(TINY)[0], templates, gpu)
        assert evaluate(100, 3) == pytest.approx([kernel_s] * 3)
        (functions,) = gpu.networks
        assert functions["alone"] == ["plug"]
        assert functions["main"] == ["plug"] + ["kernel"] * queue.LAUNCHES


def test_a_plug_outlasts_all_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimulatedGpu(launch_s=4e-5)
    monkeypatch.setattr(queue, "time", SimpleNamespace(perf_counter=lambda: gpu.now))
    templates = CudaTemplates.for_arch("sm_80", "float32")
    assert queue.LAUNCHES * gpu.launch_s > queue.SHORTEST_PLUG * STEP_S
    evaluate = queue.behind_a_plug(TINY, templates.candidates(TINY)[0], templates, gpu)
    assert evaluate(1, 1) == pytest.approx([gpu.kernel_s])


def test_launches_that_wait_for_the_gpu_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimulatedGpu(blocking=True)
    monkeypatch.setattr(queue, "time", SimpleNamespace(perf_counter=lambda: gpu.now))
    templates = CudaTemplates.for_arch("sm_80", "float32")
    with pytest.raises(MeasurementError, match="CUDA_LAUNCH_BLOCKING"):
        queue.behind_a_plug(TINY, templates.candidates(TINY)[0], templates, gpu)


def test_a_plug_counts(tmp_path: Path) -> None:
    templates = CudaTemplates.for_arch("sm_80", "float32")
    emulated = EmulatedKernels({"plug": queue.plug("plug")}, templates.target, tmp_path)
    steps, out = np.array([1000], np.int32), np.zeros(1, np.int32)
    emulated.run("plug", {"steps": steps, "out": out, "y": out})
    state = 1000
    for _ in range(1000):
        state = (state * 1103515245 + 12345) % 2**32
    assert out[0] == np.uint32(state).astype(np.int32)


@pytest.mark.parametrize("kernel_s", [1e-6, 7e-6])
def test_dispatch_costs_and_kernels_add_up_to_a_network(
    kernel_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where kernels are shorter than launches, and where they are longer."""
    gpu = SimulatedGpu(kernel_s=kernel_s)
    runtime = runtime_on(gpu, monkeypatch, "float32")
    dispatch = {part: found.latency_us for part, found in runtime.time_dispatch().items()}
    assert set(dispatch) == set(CudaRuntime.dispatch_parts)
    assert dispatch["launch"] == pytest.approx(1e6 * max(gpu.launch_s, kernel_s), rel=1e-3)
    assert dispatch["invocation"] == pytest.approx(1e6 * gpu.invocation_s, rel=1e-2)
    graph = GRAPHS["shuffle_unit"]()
    schedules = {k: runtime.timer.templates.candidates(k)[0] for k in runtime.kernels(graph)}
    network = runtime.compile(graph, schedules)
    (measured,) = network.evaluate(3, 1)
    cost = NetworkCost([1e6 * kernel_s] * len(network.launched), 0.0, 0.0, 0.0)
    predicted = runtime.network_us(cost, DispatchCosts(dispatch))
    assert predicted == pytest.approx(1e6 * measured, rel=5e-3)


def test_a_kernel_is_swept_and_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_on(SimulatedGpu(kernel_s=2.5e-6), monkeypatch, "float16")
    kernel = Kernel.parse("linear 256x1x1 -> 64x1x1 bias")
    schedule, timing = runtime.time_kernel(kernel)
    assert schedule in runtime.timer.templates.candidates(kernel)
    assert timing.latency_us == runtime.retime_kernel(kernel, schedule).latency_us == 2.5
    fingerprint = runtime.fingerprint
    assert (fingerprint.target, fingerprint.dtype) == ("cuda", "float16")


@pytest.mark.parametrize("dtype", CudaRuntime.dtypes)
@pytest.mark.parametrize("name", ["squeeze_excite", "shuffle_unit", "gates"])
def test_compiled_networks_launch_the_kernels_of_their_graph(name: str, dtype: str) -> None:
    graph, templates = GRAPHS[name](), CudaTemplates.for_arch("sm_90", dtype)
    kernels = CudaRuntime().kernels(graph)
    schedules = {kernel: templates.candidates(kernel)[0] for kernel in kernels}
    network = RelaxNetwork(graph, schedules, None, templates, SimulatedGpu())
    assert Counter(network.launched) == Counter(kernels)


@pytest.mark.parametrize(
    "name", ["squeeze_excite", "shuffle_downsampling", "fire_with_simple_bypass"]
)
def test_networks_of_kernels_compute_what_torch_computes(name: str, tmp_path: Path) -> None:
    """Launch after launch, as `RelaxNetwork` calls them, each run on the processor."""
    graph = GRAPHS[name]()
    network = Network(graph, torch.Generator().manual_seed(0)).eval()
    weights = folded_weights(network)
    templates = CudaTemplates.for_arch("sm_80", "float32")
    launches = fusion.launches(graph, fuse_expansions=True)
    kernels = list(dict.fromkeys(launch.kernel for launch in launches))
    plans = {kernel: templates.candidates(kernel)[-1] for kernel in kernels}
    names = {kernel: f"k{i}" for i, kernel in enumerate(kernels)}
    functions = {names[k]: templates.function(k, plans[k], names[k]) for k in kernels}
    emulated = EmulatedKernels(functions, templates.target, tmp_path)
    image = np.random.default_rng(0).standard_normal(graph.input_shape).astype(np.float32)
    values = {0: flat(image, "float32")}
    for launch in launches:
        kernel = launch.kernel
        expansion = None
        if kernel.is_expanded:
            first = launch.expansion
            expansion = Expansion(weights[first], weights[f"{first}.bias"])
        constants = templates.pack(
            kernel,
            plans[kernel],
            weights[launch.slot] if kernel.has_weights else None,
            weights[f"{launch.slot}.bias"] if kernel.has_bias else None,
            expansion,
        )
        read = [values[source] for source in launch.sources]
        split = len(kernel.inputs)
        output = np.empty(int(np.prod(kernel.output)), np.float32)
        arrays = [*read[:split], *constants, *read[split:], output]
        parameters = [each.name for each in functions[names[kernel]].params]
        emulated.run(names[kernel], dict(zip(parameters, arrays, strict=True)))
        values[launch.result] = output
    c, h, w = graph.output_shape
    found = values[launches[-1].result].reshape(h, w, c).transpose(2, 0, 1).reshape(-1)
    with torch.no_grad():
        expected = network(torch.from_numpy(image)[None])[0].numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["mobilenet", "shufflenet_v1", "squeezenet"])
def test_every_kernel_of_a_space_has_schedules_that_fit(name: str) -> None:
    """Sampled networks at their own image sizes: tiles fit, whatever the number of channels."""
    space = nas.space.load_definition(name)
    rng = np.random.default_rng(0)
    graphs: list[Graph] = [space.sample(rng).graph for _ in range(1)]
    for kernel in dict.fromkeys(k for graph in graphs for k in CudaRuntime().kernels(graph)):
        for dtype in CudaRuntime.dtypes:
            templates = CudaTemplates.for_arch("sm_80", dtype)
            schedules = templates.candidates(kernel)
            assert 1 <= len(schedules) <= 5
            templates.function(kernel, schedules[0], "kernel")
            assert len(templates.refinements(kernel, schedules[0])) <= 4


def test_settings_that_a_gpu_does_not_have_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="no dtype 'int8'.*Allowed: float32, float16"):
        targets.resolve("cuda", 1, "int8")
    with pytest.raises(RequestError, match="threads is 4"):
        targets.resolve("cuda", 4, "float16")
    with pytest.raises(RequestError, match="no dtype 'float16'"):
        TvmRuntime(dtype="float16").check_settings()
    nothing = SimpleNamespace(exist=False)
    monkeypatch.setattr(cuda_device, "tvm", SimpleNamespace(cuda=lambda: nothing))
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU.*--target cpu"):
        targets.resolve("cuda", 1, "float16")
