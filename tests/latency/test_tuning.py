"""Tuning keeps the faster of two schedules, records what it tried, and tries nothing twice."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import nas.space
from nas.errors import MeasurementError, RequestError
from nas.latency import Kernel, LatencyTable, build_table, space_kernels
from nas.latency.record import Record
from nas.latency.runtime import Runtime
from nas.latency.timing import Timing, round_to_four_digits
from nas.latency.tuning import TuningProgress, completed_trials, requested_trials, tune_table
from nas.latency.worker_process import WorkerTimer
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from nas.runtimes.tvm.runtime import METASCHEDULE, CudaRuntime, TvmRuntime
from tests.latency.fake_runtime import FakeRuntime, latency_us

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
KERNELS = [kernel for kernel in space_kernels(SPACE, "tvm") if kernel.has_weights][:6]


@dataclass
class FakeTuner(FakeRuntime):
    """A runtime whose tuned schedules take `factors` times as long, by the text of the kernel.

    A kernel without a factor cannot be tuned.
    """

    factors: dict[str, float] = field(default_factory=dict)
    tuned: list[Kernel] = field(default_factory=list)
    timed_schedules: list[str] = field(default_factory=list)

    def tune_kernel(self, kernel: Kernel, tuner: str, trials: int) -> Mapping[str, Any]:
        time.sleep(self.seconds)
        self.tuned.append(kernel)
        if kernel.text not in self.factors:
            raise MeasurementError("none of the candidates runs")
        return {"tuner": tuner, "trials": trials, "trace": [[], []]}

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Timing:
        is_trace = "trace" in schedule
        self.timed_schedules.append("tuned" if is_trace else "recorded")
        assert is_trace or schedule["tile"] == 1
        factor = self.factors[kernel.text] if is_trace else 1.0
        return Timing((round_to_four_digits(factor * latency_us(kernel)),) * 10)


def record_of(table: LatencyTable, kernel: Kernel) -> Record:
    record = table.record(kernel)
    assert record is not None
    assert record.settled
    return record


def test_tune_keeps_faster_schedule_and_records_trials(tmp_path: Path) -> None:
    faster, slower, broken = KERNELS[:3]
    runtime = FakeTuner(factors={faster.text: 0.5, slower.text: 1.25})
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, KERNELS[:3], runtime)
    before = {kernel: record_of(table, kernel) for kernel in KERNELS[:3]}
    runtime.timed_schedules.clear()
    seen: list[TuningProgress] = []
    result = tune_table(
        table, KERNELS[:3], runtime, tuner=METASCHEDULE, trials=8, progress=seen.append
    )
    assert (result.faster, result.unchanged, result.skipped) == (1, 1, 0)
    assert list(result.failed) == [broken]
    assert "none of the candidates runs" in str(result)
    assert runtime.timed_schedules[:6] == ["recorded", "tuned"] * 3

    table = LatencyTable.open(table.path)
    won, kept = record_of(table, faster), record_of(table, slower)
    assert won.latency_us == round_to_four_digits(0.5 * latency_us(faster))
    assert won.schedule == {"tuner": "metaschedule", "trials": 8, "trace": [[], []]}
    assert (won.status, len(won.medians_us)) == ("ok", 2)
    assert kept.latency_us == before[slower].latency_us
    assert kept.samples_us == before[slower].samples_us
    assert kept.schedule is not None
    assert kept.schedule["tile"] == 1
    assert kept.schedule["tried"] == {"tuner": "metaschedule", "trials": 8, "speedup": 0.8}
    assert record_of(table, broken) == before[broken]
    assert [completed_trials(record_of(table, kernel), METASCHEDULE) for kernel in KERNELS[:3]] == [
        8,
        8,
        0,
    ]

    last = seen[-1]
    assert (last.done, last.total) == (3, 3)
    total_us = latency_us(faster) + latency_us(slower)
    assert result.gain == pytest.approx(0.5 * latency_us(faster) / total_us, abs=1e-3)
    assert last.gain == result.gain


def test_tune_repeats_only_with_more_trials(tmp_path: Path) -> None:
    runtime = FakeTuner(factors={kernel.text: 0.9 for kernel in KERNELS[::2]})
    runtime.factors |= {kernel.text: 1.1 for kernel in KERNELS[1::2]}
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, KERNELS, runtime)

    def stop(progress: TuningProgress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_table(table, KERNELS, runtime, tuner=METASCHEDULE, trials=8, progress=stop)
    assert runtime.tuned == KERNELS[:3]
    again = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(again, KERNELS, runtime)
    result = tune_table(again, KERNELS, runtime, tuner=METASCHEDULE, trials=8)
    assert runtime.tuned == KERNELS
    assert result.skipped == 3
    rows = again.path.read_bytes()
    assert tune_table(again, KERNELS, runtime, tuner=METASCHEDULE, trials=4).skipped == len(KERNELS)
    assert again.path.read_bytes() == rows
    more = tune_table(again, KERNELS, runtime, tuner=METASCHEDULE, trials=16)
    # A second schedule that is no faster than the first replaces nothing.
    assert (more.faster, more.unchanged) == (0, len(KERNELS))
    assert all(completed_trials(record_of(again, kernel), METASCHEDULE) == 16 for kernel in KERNELS)


def test_tune_skips_kernels_without_weights_or_latency(tmp_path: Path) -> None:
    broken = KERNELS[0]
    pool = Kernel.parse("global_pool 8x4x4 -> 8x1x1")
    runtime = FakeTuner(broken=frozenset({broken.text}))
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, [broken, pool], runtime)
    result = tune_table(table, [broken, pool, KERNELS[1]], runtime, tuner=METASCHEDULE, trials=8)
    assert result.skipped == 3
    assert runtime.tuned == []


def test_worker_gets_more_time_for_more_trials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nas.latency.worker_process.TRIAL_SECONDS", 1.0)
    with WorkerTimer(FakeTuner(factors={KERNELS[0].text: 0.5}, seconds=0.4), limit_s=0.1) as timer:
        assert timer.tune_kernel(KERNELS[0], METASCHEDULE, 20)["trials"] == 20
        with pytest.raises(MeasurementError, match="none of the candidates runs"):
            timer.tune_kernel(KERNELS[1], METASCHEDULE, 20)
        monkeypatch.setattr("nas.latency.worker_process.TRIAL_SECONDS", 0.01)
        with pytest.raises(MeasurementError, match="took more than"):
            timer.tune_kernel(KERNELS[0], METASCHEDULE, 2)


@pytest.mark.parametrize(
    ("runtime", "tuner", "trials", "words"),
    [
        (TvmRuntime(), "template", 64, "--trials counts the schedules that a tuner tries"),
        (TvmRuntime(), "mlp", None, "Runtime 'tvm' has no tuner 'mlp'"),
        (OnnxRuntime(), METASCHEDULE, 64, "Runtime 'onnxruntime' has no tuner 'metaschedule'"),
        (CudaRuntime(target="cuda"), METASCHEDULE, 64, "Runtime 'tvm' has no tuner"),
        (TvmRuntime(target="rpc://host:9090"), METASCHEDULE, 9, "target 'rpc://host:9090'"),
    ],
)
def test_requested_trials_refuses_wrong_requests_with_remedy(
    runtime: Runtime, tuner: str, trials: int | None, words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        requested_trials(runtime, tuner, trials)
    assert words in str(caught.value)
    assert caught.value.remedy


@pytest.mark.slow
def test_command_line_refuses_trials_without_tuner(tmp_path: Path) -> None:
    words = ["table", "build", "--space", "mobilenet_tiny", "--trials", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "nas", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Name a tuner with --tuner" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.runtimes.tvm.runtime.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="needs xgboost") as caught:
        requested_trials(TvmRuntime(), METASCHEDULE, 64)
    assert caught.value.remedy == "pip install 'hardware-nas[metaschedule]'"


def test_requested_trials_defaults_to_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nas.runtimes.tvm.runtime.find_spec", lambda name: object())
    assert requested_trials(OnnxRuntime(), "template", None) == 0
    assert requested_trials(TvmRuntime(), METASCHEDULE, None) == 64
    assert requested_trials(TvmRuntime(), METASCHEDULE, 7) == 7


def test_tune_refuses_zero_trials(tmp_path: Path) -> None:
    runtime = FakeTuner()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    with pytest.raises(RequestError, match="trials is 0"):
        tune_table(table, KERNELS, runtime, tuner=METASCHEDULE, trials=0)


@pytest.mark.parametrize("tried", [{"trials": "8"}, {"trials": None}, [8], 8, None])
def test_unreadable_trials_count_as_none(tried: Any) -> None:
    assert completed_trials(Record("kernel", schedule={"tried": tried}), METASCHEDULE) == 0
