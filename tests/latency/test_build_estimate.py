"""Estimates of builds, in simulated time, against builds in the same time."""

from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest

from nas.errors import DeviceError
from nas.latency import (
    LatencyTable,
    build,
    build_estimate,
    build_table,
    rounds,
    space_kernels,
    timing,
)
from nas.latency.build_estimate import (
    MAX_TIMED_KERNELS,
    estimate_build,
    estimate_build_with,
    network_latencies_us,
)
from nas.latency.core_speed import SpeedSummary
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import load_space
from tests.capabilities import change
from tests.job.fake_kits import FakeKitDevice
from tests.latency.fake_runtime import FakeRuntime, latency_us
from tests.latency.two_speeds import TwoSpeedCore

KERNELS = space_kernels(load_space("squeezenet", image_size=32), "tvm")


@dataclass
class Clocked(FakeRuntime):
    """A runtime of which a convolution takes 3 s plus half a second per pixel of its size.

    Each later timing takes 0.05 s.
    """

    clock: TwoSpeedCore = field(default_factory=lambda: TwoSpeedCore(0, full_share=1.0))

    def time_kernel(self, kernel):
        self.clock.sleep(3 + kernel.kernel / 2 if kernel.kind == "conv2d" else 1)
        return super().time_kernel(kernel)

    def retime_kernel(self, kernel, schedule):
        self.clock.sleep(0.05)
        return super().retime_kernel(kernel, schedule)


@pytest.fixture
def clocked(monkeypatch):
    runtime = Clocked()
    change(monkeypatch, TvmRuntime, rounds=6)
    monkeypatch.setattr(timing, "SECONDS_BETWEEN_ROUNDS", 0.5)
    monkeypatch.setattr(build_estimate, "timers_for", lambda each: nullcontext([each]))
    for module in (build, build_estimate, rounds):
        monkeypatch.setattr(module, "time", runtime.clock)
    return runtime


@pytest.mark.parametrize("kernels", [KERNELS, [k for k in KERNELS if k.kernel == 3][:10]])
def test_estimate_is_what_a_build_takes(clocked, tmp_path, kernels):
    estimate = estimate_build_with(kernels, clocked)
    assert (estimate.kernels, estimate.timed_kernels) == (len(kernels), MAX_TIMED_KERNELS)
    clocked.timed.clear()
    clocked.retimed.clear()
    built = build_table(LatencyTable.open_or_create(tmp_path, clocked), kernels, clocked)
    assert estimate.estimated_seconds == pytest.approx(built.seconds, rel=0.05, abs=1.0)


def test_build_takes_longer_on_a_core_that_is_slowed(clocked, monkeypatch):
    """It waits for full speed, but not for ever."""
    seconds = []
    for full_share in (1.0, 0.25, 0.01):
        summary = SpeedSummary(full_share, None, None)
        monkeypatch.setattr(build_estimate, "watch_speed", lambda _, own=summary: own)
        monkeypatch.setattr(Clocked, "retime_kernel", lambda *_: Timing((5.0,), reading_us=10.0))
        monkeypatch.setattr(
            Clocked, "time_kernel", lambda *_: ({"tile": 1}, Timing((5.0,), reading_us=10.0))
        )
        estimate = estimate_build_with(KERNELS[:3], clocked)
        assert estimate.full_share == full_share
        seconds.append(estimate.estimated_seconds - estimate.first_seconds)
    assert seconds == pytest.approx([2.5, 10.0, 25.0], abs=0.2)


def test_estimate_times_all_of_a_few_kernels(clocked, monkeypatch):
    change(monkeypatch, TvmRuntime, rounds=1)
    estimate = estimate_build_with(KERNELS[:3], clocked)
    assert {kernel.text for kernel in clocked.timed} == {kernel.text for kernel in KERNELS[:3]}
    assert estimate.timed_kernels == 3
    assert not clocked.retimed


def test_estimate_gives_reason_if_no_kernel_can_be_timed(clocked):
    clocked.broken = frozenset(kernel.text for kernel in KERNELS)
    estimate = estimate_build_with(KERNELS, clocked)
    assert (estimate.estimated_seconds, estimate.timed_kernels) == (None, 0)
    assert estimate.reason.endswith("cannot be timed: RuntimeError: the compiler")


def test_estimate_gives_reason_if_runtime_is_unusable(monkeypatch):
    def unusable(name, **settings):
        raise DeviceError(f"Runtime '{name}' cannot be used here: it is not installed.")

    monkeypatch.setattr(build_estimate, "open_runtime", unusable)
    estimate = estimate_build(KERNELS, "tvm")
    assert estimate.estimated_seconds is None
    assert "it is not installed" in estimate.reason


class Compiled(FakeRuntime):
    """A runtime without networks, as one that needs the schedule of each kernel."""

    def compile(self, graph, schedules, weights=None, batch=1):
        raise KeyError("schedule")


@pytest.fixture
def networks(monkeypatch):
    """One network at three sizes, on runtimes whose timers are themselves."""
    monkeypatch.setattr(build_estimate, "timers_for", lambda each: nullcontext([each]))
    spaces = [load_space("mobilenet", image_size=size) for size in (32, 64, 96)]
    return [space.reference("mobilenet_v2_1.0") for space in spaces]


def kernels_us(network):
    return sum(map(latency_us, FakeRuntime().kernels(network.graph)))


def test_latencies_follow_from_one_that_is_measured(networks):
    own = network_latencies_us(networks, 1, None, FakeRuntime())
    whole_us = 1.1 * kernels_us(networks[1])
    ratios = [each.macs / networks[1].macs for each in networks]
    assert own == pytest.approx([whole_us * ratio for ratio in ratios], rel=1e-3)
    runtime = Compiled()
    own = network_latencies_us(networks, 1, None, runtime)
    assert len(runtime.timed) == MAX_TIMED_KERNELS
    assert own[1] == pytest.approx(kernels_us(networks[1]), rel=0.1)
    assert own == pytest.approx([own[1] * ratio for ratio in ratios])


def test_latencies_are_those_of_the_table_as_far_as_it_goes(networks, tmp_path):
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    kernels = {each for network in networks[:2] for each in runtime.kernels(network.graph)}
    build_table(table, list(kernels), runtime)
    runtime.timed.clear()
    own = network_latencies_us(networks, 0, table, None)
    predicted = [table.predict(each).latency_us for each in networks[:2]]
    assert own[:2] == pytest.approx(predicted)
    rates = [us / each.macs for us, each in zip(predicted, networks, strict=False)]
    assert own[2] == pytest.approx(networks[2].macs * sum(rates) / 2)
    assert not runtime.timed


def test_latencies_are_zero_where_nothing_is_known(networks):
    assert network_latencies_us(networks, 0, None, None).tolist() == [0, 0, 0]
    broken = Compiled(broken=frozenset(str(each) for each in Compiled().kernels(networks[0].graph)))
    assert network_latencies_us(networks, 0, None, broken).tolist() == [0, 0, 0]


def test_kits_are_estimated_from_what_two_of_them_take_to_compile(clocked, monkeypatch):
    class Device(FakeKitDevice):
        devices = (None, None)

        def write_kernels_kit(self, kernels, spaces, folder, progress=None):
            clocked.clock.sleep(10 + 2 * len(kernels))

    monkeypatch.setattr(build_estimate, "timers_for", lambda each: nullcontext(each))
    device = Device(target="ssh://phone")
    few, many = KERNELS[:10], KERNELS * 10
    # At least the two minutes in which the rounds of the miss curve are taken.
    assert estimate_build_with(few, device).estimated_seconds == 10 + 2 * 10 + 120
    assert len(many) * build_estimate.KIT_KERNEL_SECONDS / 2 > 120
    estimate = estimate_build_with(many, device)
    own_s = 2 + build_estimate.KIT_KERNEL_SECONDS / 2
    assert estimate.estimated_seconds == pytest.approx(10 + own_s * len(many), abs=0.1)
    assert estimate.first_seconds == estimate.estimated_seconds
