"""Latencies of kernels and networks on a simulated GPU, and what networks compile to."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

import nas.space
from nas.errors import DeviceError, RequestError
from nas.kernels.kernel import Kernel
from nas.latency.cache_model import DispatchCosts
from nas.latency.composition import NetworkCost
from nas.latency.installed_runtimes import configured_runtime
from nas.runtimes.tvm import kernel_timer
from nas.runtimes.tvm.cuda import device as cuda_device
from nas.runtimes.tvm.cuda import queue
from nas.runtimes.tvm.relax_network import RelaxNetwork
from nas.runtimes.tvm.runtime import CudaRuntime, TvmRuntime, pipeline_us
from nas.schedules.cuda.templates import CudaTemplates
from tests.latency.example_graphs import GRAPHS
from tests.runtimes.tvm.cuda.simulated_gpu import SimulatedGpu


def test_gpu_refuses_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_on(SimulatedGpu(), monkeypatch, "float32")
    runtime.check_batch(1)
    with pytest.raises(RequestError, match="batch size is 4, .* at most 1 on target 'cuda'"):
        runtime.check_batch(4)
    four = Kernel.parse("copy batch4 8x2x2 -> 8x2x2 relu")
    with pytest.raises(ValueError, match="for one image"):
        runtime.timer.templates.function(
            four, runtime.timer.templates.candidates(four)[0], "kernel"
        )


def runtime_on(gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch, dtype: str) -> CudaRuntime:
    templates = CudaTemplates.for_arch("sm_80", dtype)
    monkeypatch.setattr(kernel_timer, "resolve_target", lambda *settings: (templates, gpu))
    monkeypatch.setattr(queue, "time", SimpleNamespace(perf_counter=lambda: gpu.now))
    return CudaRuntime(target="cuda", dtype=dtype)


@pytest.mark.parametrize(
    ("kernels_us", "end_us"),
    [
        ([1.0, 2.0, 1.5], 10 + 2 * 4 + 1.5),  # as long as launching them
        ([50.0, 20.0, 9.0], 10 + 79),  # as long as the kernels
        # The second and third are queued when the first ends; the last is launched at 10 + 3 * 4.
        ([8.5, 1.0, 1.0, 1.0], 23.0),
        ([20.0, 1.0, 1.0, 1.0], 33.0),
    ],
)
def test_launches_hide_behind_long_kernels(kernels_us: list[float], end_us: float) -> None:
    assert pipeline_us(kernels_us, 4.0, 10.0) == pytest.approx(end_us)


def test_tables_of_gpus_predict_with_the_gpu_runtime() -> None:
    gpu = configured_runtime("tvm", target="cuda", dtype="float16", features=("cuda", "sm_80"))
    assert type(gpu) is CudaRuntime
    assert type(configured_runtime("tvm", features=("avx2",))) is TvmRuntime
    graph = GRAPHS["inverted_residual"]()
    assert gpu.kernels(graph) == TvmRuntime().kernels(graph)
    with pytest.raises(RequestError, match="no dtype 'int4'"):
        configured_runtime("tvm", target="cuda", dtype="int4")


@pytest.mark.parametrize("kernel_s", [1e-6, 7e-6])
@pytest.mark.slow
def test_dispatch_costs_and_kernels_add_up_to_a_network(
    kernel_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are shorter than launches in one case, and longer in the other."""
    gpu = SimulatedGpu(kernel_s=kernel_s)
    runtime = runtime_on(gpu, monkeypatch, "float32")
    dispatch = {part: timing.latency_us for part, timing in runtime.timer.time_dispatch().items()}
    assert set(dispatch) == set(CudaRuntime.capabilities.dispatch_parts)
    assert dispatch["launch"] == pytest.approx(1e6 * max(gpu.launch_s, kernel_s), rel=1e-3)
    assert dispatch["invocation"] == pytest.approx(1e6 * gpu.invocation_s, rel=1e-2)
    graph = GRAPHS["shuffle_unit"]()
    schedules = {k: runtime.timer.templates.candidates(k)[0] for k in runtime.kernels(graph)}
    network = runtime.compile(graph, schedules)
    (measured,) = network.evaluate(3, 1)
    cost = NetworkCost([1e6 * kernel_s] * len(network.launched), 0, 0)
    predicted = runtime.network_us(cost, DispatchCosts(dispatch))
    assert predicted == pytest.approx(1e6 * measured, rel=5e-3)


def test_kernel_is_timed_again_with_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_on(SimulatedGpu(kernel_s=2.5e-6), monkeypatch, "float16")
    kernel = Kernel.parse("linear 256x1x1 -> 64x1x1 bias")
    schedule, timing = runtime.timer.time_kernel(kernel)
    assert schedule in runtime.timer.templates.candidates(kernel)
    assert timing.latency_us == runtime.timer.retime_kernel(kernel, schedule).latency_us == 2.5
    fingerprint = runtime.fingerprint
    assert (fingerprint.target, fingerprint.dtype) == ("cuda", "float16")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("squeeze_excite", "float32"), ("shuffle_unit", "float16"), ("gates", "float32")],
)
def test_compiled_networks_launch_the_kernels_of_their_graph(name: str, dtype: str) -> None:
    graph, templates = GRAPHS[name](), CudaTemplates.for_arch("sm_90", dtype)
    kernels = CudaRuntime().kernels(graph)
    schedules = {kernel: templates.candidates(kernel)[0] for kernel in kernels}
    network = RelaxNetwork(graph, schedules, None, templates, SimulatedGpu())
    assert Counter(network.launched) == Counter(kernels)


@pytest.mark.parametrize("name", ["mobilenet", "shufflenet_v1", "squeezenet"])
def test_every_kernel_of_a_space_has_schedules_that_fit(name: str) -> None:
    """The tiles of sampled networks fit, whatever the number of channels."""
    space = nas.space.load_definition(name)
    rng = np.random.default_rng(0)
    for kernel in dict.fromkeys(CudaRuntime().kernels(space.sample(rng).graph)):
        for dtype in CudaRuntime.capabilities.dtypes:
            templates = CudaTemplates.for_arch("sm_80", dtype)
            schedules = templates.candidates(kernel)
            assert 1 <= len(schedules) <= 5
            templates.function(kernel, schedules[0], "kernel")
            assert len(templates.refinements(kernel, schedules[0])) <= 4


def test_settings_that_a_gpu_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="no dtype 'int8'.*Allowed: float32, float16"):
        CudaRuntime(target="cuda", dtype="int8").check_settings()
    with pytest.raises(RequestError, match="threads is 4"):
        CudaRuntime(target="cuda", threads=4).check_settings()
    with pytest.raises(RequestError, match="no dtype 'float16'"):
        TvmRuntime(dtype="float16").check_settings()
    missing_gpu = SimpleNamespace(exist=False)
    monkeypatch.setattr(cuda_device, "tvm", SimpleNamespace(cuda=lambda: missing_gpu))
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU.*Use target cpu"):
        kernel_timer.resolve_target("cuda", 1, "float16")
