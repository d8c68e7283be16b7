"""Timers of other packages that return or raise anything: each answer becomes a row."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nas.space
from nas.errors import DeviceError, MeasurementError
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table, space_kernels
from nas.latency.record import MAX_SAMPLES, kept_samples
from nas.latency.timing import Timing
from nas.latency.worker_process import WorkerTimer
from tests.latency.fake_runtime import FakeRuntime

HOSTILE, FINE = space_kernels(
    nas.space.load_space("mobilenet_tiny", image_size=8, channels=1), "tvm"
)[:2]


def raising(error: BaseException) -> Callable[[], Any]:
    """Return a function that raises an error."""

    def fail() -> Any:
        raise error

    return fail


class MuteError(Exception):
    """An error that fails to say what it is."""

    def __str__(self) -> str:
        raise ValueError("no text")


class Unshowable:
    """An object without a text."""

    def __repr__(self) -> str:
        raise ValueError("no text")


def circle() -> dict[str, Any]:
    """Return a schedule that contains itself."""
    own: dict[str, Any] = {}
    own["own"] = own
    return own


TIMING = Timing((1.0,))

WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, "returned None"),
    "a timing alone": (lambda: TIMING, "a schedule and a Timing was expected"),
    "a latency": (lambda: ({}, 1e-3), "a schedule and a Timing was expected"),
    "seconds": (lambda: ({}, [1e-3]), "a schedule and a Timing was expected"),
    "three values": (lambda: ({}, TIMING, 1), "a schedule and a Timing was expected"),
    "a text": (lambda: "ok", "returned 'ok'"),
    "no schedule": (lambda: (None, TIMING), "a schedule and a Timing was expected"),
    "a generator": (lambda: (each for each in ()), "generator"),
    "an object without a text": (Unshowable, "an object of class Unshowable"),
    "a schedule of bytes": (lambda: ({"tile": b"1"}, TIMING), "that JSON can hold"),
    "a schedule of objects": (lambda: ({"tile": object()}, TIMING), "that JSON can hold"),
    "a schedule with nan": (lambda: ({"energy": math.nan}, TIMING), "nan is no number of JSON"),
    "a schedule with numbers as keys": (lambda: ({1: 2}, TIMING), "that JSON can hold"),
    "a schedule that contains itself": (lambda: (circle(), TIMING), "that JSON can hold"),
    "nan": (lambda: ({}, Timing((1.0, math.nan))), "1.0, nan in us, which is no latency"),
    "infinity": (lambda: ({}, Timing((math.inf,))), "no latency"),
    "negative": (lambda: ({}, Timing((-1.0,))), "no latency"),
    "zero": (lambda: ({}, Timing.from_seconds([0.0])), "no latency"),
    "too long": (lambda: ({}, Timing.from_seconds([1e7])), "no latency"),
    "too short": (lambda: ({}, Timing.from_seconds([1e-17])), "no latency"),
    "no sample": (lambda: ({}, Timing(())), "no sample in us"),
    "texts": (lambda: ({}, Timing.from_seconds(["1e-3"])), "no latency"),  # type: ignore[list-item]
    "a text of seconds": (lambda: ({}, Timing.from_seconds("1e-3")), "no latency"),  # type: ignore[arg-type]
    "booleans": (lambda: ({}, Timing((True,))), "no latency"),
    "a number": (lambda: ({}, Timing.from_seconds(1e-3)), "TypeError"),  # type: ignore[arg-type]
    "samples that are none": (lambda: ({}, Timing(None)), "TypeError"),  # type: ignore[arg-type]
    "a list": (lambda: ({}, Timing(([1.0],))), "no latency"),  # type: ignore[arg-type]
    "a reading of nan": (lambda: ({}, Timing((1.0,), math.nan)), "no latency"),
    "a first sample of zero": (lambda: ({}, Timing((1.0,), 1.0, 0.0)), "no latency"),
    "an error": (raising(KeyError("tile")), "KeyError: 'tile'"),
    "an error without a text": (raising(MeasurementError("")), "MeasurementError"),
    "an error whose text fails": (raising(MuteError()), "MuteError"),
    "bytes that are no text": (raising(ValueError("caf\udce9")), r"caf\udce9"),
    "a long text": (raising(MeasurementError("x" * 10_000)), "x" * 500),
    "a recursion": (raising(RecursionError("too deep")), "RecursionError"),
    "no memory": (raising(MemoryError()), "MemoryError"),
    "the end of an iterator": (raising(StopIteration()), "StopIteration"),
    "an exit": (raising(SystemExit(3)), "sys.exit(3)"),
}  # fmt: skip
"""What a timer does, and a part of the error in the row."""

UNUSUAL: dict[str, tuple[Callable[[], Any], float]] = {
    "a number of numpy": (lambda: ({"tile": np.float64(2)}, Timing((np.float32(8.0),))), 8.0),
    "an array": (lambda: ({}, Timing(np.array([4.0, 5.0, 9.0]))), 5.0),  # type: ignore[arg-type]
    "whole numbers": (lambda: ({}, Timing((3, 4, 5))), 4.0),
    "a hundred samples": (lambda: ({}, Timing(tuple(map(float, range(100, 0, -1))))), 50.5),
    "thirteen samples": (lambda: ({}, Timing((*[1.0] * 6, 2.0, *[9.0] * 6))), 2.0),
    "thousands of samples": (lambda: ({}, Timing.from_seconds([1e-6] * 2500 + [3e-6] * 2501)), 3.0),
}  # fmt: skip
"""What a timer may return, and the latency in microseconds that follows."""


class HostileRuntime(FakeRuntime):
    """A runtime with a kernel at which it does what `WRONG` or `UNUSUAL` says.

    Attributes:
        case: key of `WRONG`, `UNUSUAL` or `OF_A_WORKER`.
        first: whether the first timing is right, and only the further ones are not.
    """

    case = ""
    first = False

    def _answer(self) -> Any:
        return {**WRONG, **UNUSUAL, **OF_A_WORKER}[self.case][0]()

    def time_kernel(self, kernel: Kernel) -> Any:
        if kernel == HOSTILE and not self.first:
            return self._answer()
        return super().time_kernel(kernel)

    def retime_kernel(self, kernel: Kernel, schedule: Mapping[str, Any]) -> Any:
        if kernel == HOSTILE:
            answer = self._answer()
            return answer[1] if isinstance(answer, tuple) and len(answer) == 2 else answer
        return super().retime_kernel(kernel, schedule)


def built(runtime: HostileRuntime, folder: Path, *, in_worker: bool = False) -> LatencyTable:
    """Return the table of two kernels as its file holds it, the first of which is hostile."""
    table = LatencyTable.open_or_create(folder, FakeRuntime())
    if in_worker:
        with WorkerTimer(runtime) as timer:
            build_table(table, [HOSTILE, FINE], timer)
    else:
        build_table(table, [HOSTILE, FINE], runtime)
    read = LatencyTable.open(table.path)
    fine = read.record(FINE)
    assert fine is not None
    assert fine.status == "ok", "the build went on"
    return read


def error_of(table: LatencyTable) -> str:
    record = table.record(HOSTILE)
    assert record is not None
    assert (record.status, record.latency_us) == ("failed", None)
    assert record.error
    return record.error


@pytest.mark.parametrize("case", WRONG)
def test_wrong_answer_becomes_a_row(case: str, tmp_path: Path) -> None:
    runtime = HostileRuntime()
    runtime.case = case
    assert WRONG[case][1] in error_of(built(runtime, tmp_path))


@pytest.mark.parametrize("case", ["nothing", "a latency", "nan", "an error", "an exit"])
def test_wrong_answer_of_a_further_timing_becomes_a_row(case: str, tmp_path: Path) -> None:
    runtime = HostileRuntime()
    runtime.case, runtime.first = case, True
    error_of(built(runtime, tmp_path))


@pytest.mark.parametrize("case", UNUSUAL)
def test_unusual_answer_is_a_timing(case: str, tmp_path: Path) -> None:
    runtime = HostileRuntime()
    runtime.case = case
    record = built(runtime, tmp_path).record(HOSTILE)
    assert record is not None
    assert record.latency_us == UNUSUAL[case][1]
    assert len(record.samples_us) <= MAX_SAMPLES


class FromTheWorker:
    """An object that the process of the caller cannot read."""

    def __reduce__(self) -> Any:
        return float, ("no number",)


OF_A_WORKER: dict[str, tuple[Callable[[], Any], str]] = {
    "not sent": (lambda: ({"tile": lambda: 1}, TIMING), "the answer cannot be sent"),
    "not read": (lambda: ({"tile": FromTheWorker()}, TIMING), "cannot be read: ValueError"),
    "an exit": (raising(SystemExit(3)), "ended with status 3"),
    "an error whose text fails": WRONG["an error whose text fails"],
}
"""Cases of `WRONG` for a timer in a process of its own."""


@pytest.mark.slow
@pytest.mark.parametrize("case", OF_A_WORKER)
def test_wrong_answer_of_a_worker_becomes_a_row(case: str, tmp_path: Path) -> None:
    runtime = HostileRuntime()
    runtime.case = case
    assert OF_A_WORKER[case][1] in error_of(built(runtime, tmp_path, in_worker=True))


@pytest.mark.parametrize(
    "answer",
    [
        lambda: None,
        lambda: [1.0],
        lambda: {"launch": 1.0},
        lambda: {1: TIMING},
        raising(KeyError("launch")),
        lambda: {"launch": Timing((math.nan,))},
    ],
)
@pytest.mark.parametrize("method", ["time_dispatch", "time_miss_curve"])
def test_wrong_dispatch_costs_end_the_build(
    method: str, answer: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeRuntime, method, lambda self: answer())
    table = LatencyTable.open_or_create(tmp_path, FakeRuntime())
    with pytest.raises(MeasurementError):
        build_table(table, [FINE], FakeRuntime())


def test_device_that_is_none_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail = raising(DeviceError("It was unplugged."))
    monkeypatch.setattr(FakeRuntime, "time_kernel", lambda self, kernel: fail())
    table = LatencyTable.open_or_create(tmp_path, FakeRuntime())
    with pytest.raises(DeviceError, match="unplugged"):
        build_table(table, [HOSTILE, FINE], FakeRuntime())


@pytest.mark.parametrize("count", [1, 2, 11, 12, 13, 14, 15, 25, 26, 100, 1001])
def test_record_keeps_the_median_and_the_range_of_all_samples(count: int) -> None:
    samples = tuple(np.random.default_rng(count).lognormal(size=count).tolist())
    kept = kept_samples(samples)
    assert len(kept) == min(count, MAX_SAMPLES - (count > MAX_SAMPLES and count % 2))
    assert set(kept) <= set(samples)
    assert statistics.median(kept) == statistics.median(samples)
    assert (min(kept), max(kept)) == (min(samples), max(samples))
    assert len(set(kept)) == len(kept)
