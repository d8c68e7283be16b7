"""What the contract of a runtime assumes of a runtime that says nothing: no processor."""

from __future__ import annotations

import os
from typing import Any

import pytest

from nas.errors import RequestError
from nas.latency import Capabilities, core_scheduling, timing
from nas.latency.device import Fingerprint
from nas.latency.runtime import Availability, Runtime
from nas.latency.worker_process import timers_for
from nas.runtimes.litert.runtime import LiteRt
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from tests.latency.fake_runtime import FakeRuntime


class PlugIn(Runtime):
    """A runtime that defines what it must, and nothing else."""

    name = "plug_in"
    capabilities = Capabilities(targets=("npu",))

    @classmethod
    def availability(cls) -> Availability:
        return Availability(cls.name, True, versions={"plug": "1.0"})

    @property
    def fingerprint(self) -> Fingerprint:
        return self.describe("NPU 1", recorded={"clock_hz": 1e9})

    @property
    def timer(self) -> Any:
        raise AssertionError("no kernel is timed here")

    def compile(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("no network is compiled here")


@pytest.mark.parametrize(
    ("runtime", "workers"), [(PlugIn(), 1), (FakeRuntime(), 3), (OnnxRuntime(), 3), (LiteRt(), 3)]
)
def test_device_of_a_plug_in_is_timed_by_one_process(
    runtime: Runtime, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only runtimes that reserve cores for each timing share them among processes."""
    plan = core_scheduling.CorePlan((0,), (0,))
    monkeypatch.setattr(core_scheduling, "plan_workers", lambda threads: [plan] * 3)
    with timers_for(runtime) as timers:
        assert len(timers) == workers


def test_board_is_timed_by_one_process() -> None:
    assert not LiteRt(target="ssh://board").compiles_beside_timing


def read_speed(runtime: Runtime) -> float | None:
    """Return the reading beside a timing in the context of a runtime."""
    with runtime.timing_context():
        return timing.measure(lambda calls, samples: [1e-3] * samples).reading_us


def test_networks_of_a_plug_in_are_not_judged_by_the_speed_of_this_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "WAIT_SECONDS", 0.0)
    assert read_speed(PlugIn()) is None
    assert read_speed(OnnxRuntime()) is not None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="nothing is pinned here")
def test_thread_of_a_plug_in_keeps_its_cores() -> None:
    allowed = os.sched_getaffinity(0)
    with PlugIn().timing_context():
        assert os.sched_getaffinity(0) == allowed
    with OnnxRuntime().timing_context():
        assert len(os.sched_getaffinity(0)) == 1


def test_plug_in_describes_its_device_by_what_it_alone_knows() -> None:
    assert PlugIn(threads=1).fingerprint == Fingerprint(
        processor="NPU 1", features=(), runtime="plug_in", versions={"plug": "1.0"}, target="npu",
        dtype="float32", threads=1, recorded={"clock_hz": 1e9},
    )  # fmt: skip
    fingerprint = PlugIn().describe("NPU 1", ("b", "a"), versions={"npu": "2"}, target="npu?v=1")
    assert (fingerprint.features, fingerprint.versions) == (("b", "a"), {"npu": "2"})
    assert (fingerprint.target, fingerprint.recorded) == ("npu?v=1", {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "cpu"}, r"no target 'cpu'\. Allowed: npu"),
        ({"dtype": "int8"}, r"no dtype 'int8'\. Allowed: float32"),
        ({"threads": 2}, "threads is 2, but runtime 'plug_in' has at most 1 on target 'npu'"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_plug_in_has_what_its_capabilities_say(settings: dict[str, Any], message: str) -> None:
    PlugIn().check_settings()
    with pytest.raises(RequestError, match=message):
        PlugIn(**settings).check_settings()
