from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError
from nas.latency import LatencyTable, build_table, space_kernels
from nas.latency import dispatch as dispatch_module
from nas.latency.cache_model import WEIGHT_PARTS
from nas.latency.dispatch import MAX_ATTEMPTS, time_dispatch_us
from nas.latency.timing import QUANTILE, Timing
from tests.latency.fake_runtime import FakeRuntime

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
KERNELS = space_kernels(SPACE, "tvm")[:12]
QUIET_US = 70.0


class SharedCache(FakeRuntime):
    """A runtime whose n-th timing of a miss curve takes `curve_us(n)`, the same for all parts."""

    taken: int = 0

    def time_miss_curves(self) -> Mapping[str, Timing]:
        self.taken += 1
        us = curve_us(self.taken)
        return {part: Timing((us,), reference_us=QUIET_US) for part in WEIGHT_PARTS}

    def time_dispatch(self) -> Mapping[str, Timing]:
        parts = super().time_dispatch()
        return {part: each for part, each in parts.items() if part not in WEIGHT_PARTS}


def curve_us(number: int) -> float:
    return 10.0 + number * 7 % 20


@pytest.fixture(autouse=True)
def _nine_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch_module, "CURVE_MOMENTS", 9)
    monkeypatch.setattr(dispatch_module, "FIRST_CURVE_MOMENTS", 4)


def moments(table: LatencyTable) -> list[int]:
    rows = {record.name: len(record.medians_us) for record in table.records("dispatch")}
    return [rows[part] for part in WEIGHT_PARTS]


def lower_quartile(timings: int) -> float:
    return float(np.quantile([curve_us(number + 1) for number in range(timings)], QUANTILE))


def test_miss_curves_are_the_lower_quartile_of_many_moments(tmp_path: Path) -> None:
    runtime = SharedCache()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, KERNELS, runtime)
    assert runtime.taken == 9
    assert moments(table) == [9] * len(WEIGHT_PARTS)
    for part in WEIGHT_PARTS:
        assert table.dispatch_us[part] == pytest.approx(lower_quartile(9), abs=1e-3)
    assert LatencyTable.open(table.path).dispatch_us == table.dispatch_us
    build_table(table, space_kernels(SPACE, "tvm")[:14], runtime)
    assert runtime.taken == 9, "nothing was missing"


def test_long_build_times_miss_curves_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch_module, "SECONDS_BETWEEN_CURVES", 0.0)
    monkeypatch.setattr(dispatch_module, "MAX_CURVE_MOMENTS", 11)
    monkeypatch.setattr("nas.latency.build.KERNELS_IN_TURN", 1)
    runtime = SharedCache()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, KERNELS, runtime)
    assert moments(table) == [12] * len(WEIGHT_PARTS), "the last one when all kernels are timed"
    assert table.dispatch_us[WEIGHT_PARTS[0]] == pytest.approx(lower_quartile(12), abs=1e-3)


def test_stopped_build_continues_with_the_moments_that_are_left(tmp_path: Path) -> None:
    class Stopped(SharedCache):
        def time_kernel(self, kernel: object) -> tuple[Mapping[str, object], Timing]:
            raise KeyboardInterrupt

    table = LatencyTable.open_or_create(tmp_path, FakeRuntime())
    with pytest.raises(KeyboardInterrupt):
        build_table(table, KERNELS, Stopped())
    assert moments(table) == [4] * len(WEIGHT_PARTS)
    runtime = SharedCache()
    build_table(table, KERNELS, runtime)
    assert runtime.taken == 5
    assert moments(table) == [9] * len(WEIGHT_PARTS)


def test_build_again_adds_moments(tmp_path: Path) -> None:
    runtime = SharedCache()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, KERNELS, runtime)
    build_table(table, KERNELS, runtime, again=True)
    assert moments(table) == [18] * len(WEIGHT_PARTS)


def test_curves_of_a_device_without_other_users_are_timed_with_launches(tmp_path: Path) -> None:
    asked = count()

    class Alone(FakeRuntime):
        def time_miss_curves(self) -> Mapping[str, Timing]:
            next(asked)
            return {}

    table = LatencyTable.open_or_create(tmp_path, Alone())
    build_table(table, KERNELS, Alone())
    assert table.dispatch_us["weights_4mib"] == 30.0
    assert next(asked) == 1


@pytest.mark.parametrize("method", ["time_dispatch", "time_miss_curves"])
def test_disturbed_costs_are_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Differences of timings may be negative."""
    failures: Iterator[int] = iter(())
    take = getattr(SharedCache, method)

    def disturbed(runtime: SharedCache) -> Mapping[str, Timing]:
        if next(failures, None) is not None:
            raise MeasurementError("Timing gave [-0.2] us, which is no latency.")
        timings: Mapping[str, Timing] = take(runtime)
        return timings

    monkeypatch.setattr(SharedCache, method, disturbed)
    failures = iter(range(MAX_ATTEMPTS - 1))
    table = LatencyTable.open_or_create(tmp_path, SharedCache())
    assert build_table(table, KERNELS[:2], SharedCache()).ok == 2
    assert not table.lacks_dispatch()
    failures = iter(range(MAX_ATTEMPTS))
    other = LatencyTable.open_or_create(tmp_path / "other", SharedCache())
    with pytest.raises(MeasurementError, match="no latency"):
        build_table(other, KERNELS[:2], SharedCache())


def test_costs_of_this_moment_have_all_parts() -> None:
    costs_us = time_dispatch_us(SharedCache(), QUIET_US)
    assert costs_us.keys() == set(SharedCache.dispatch_parts)
    assert costs_us["launch"] == 0.5
    assert costs_us[WEIGHT_PARTS[0]] == pytest.approx(lower_quartile(9), abs=1e-3)
    assert time_dispatch_us(FakeRuntime(), QUIET_US)[WEIGHT_PARTS[0]] == 30.0
