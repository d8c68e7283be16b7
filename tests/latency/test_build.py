"""Builds of tables on a runtime whose latencies are known."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import nas.space
from nas.errors import MeasurementError, RequestError
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build, build_table, space_kernels
from nas.latency import rounds as rounds_module
from nas.latency.cache_model import WEIGHT_PARTS
from nas.latency.record import Record
from nas.latency.rounds import MAX_ROUNDS, Policy
from nas.latency.timing import Timing
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.capabilities import change
from tests.latency.fake_runtime import FakeRuntime, latency_us

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)
KERNELS = space_kernels(SPACE, "tvm")


@pytest.fixture
def empty(tmp_path: Path) -> LatencyTable:
    return LatencyTable.open_or_create(tmp_path, FakeRuntime())


def record(table: LatencyTable, kernel: Kernel) -> Record:
    found = table.record(kernel)
    assert found is not None
    return found


def rounds(table: LatencyTable, kernel: Kernel) -> int:
    return len(record(table, kernel).rounds_us)


@pytest.mark.parametrize("image_size", [8, 33])
@pytest.mark.parametrize("name", nas.space.space_names())
def test_space_kernels_are_those_of_all_architectures_block_by_block(
    name: str, image_size: int
) -> None:
    """Predictions rely on it, too: no kernel extends from one block into the next."""
    space = nas.space.load_space(name, image_size=image_size)
    known = space_kernels(space, "tvm")
    assert len(set(known)) == len(known)
    rng, runtime = np.random.default_rng(0), TvmRuntime()
    drawn = [space.sample(rng, uniform_over="choices") for _ in range(6)]
    for architecture in (space.smallest, space.largest, *drawn):
        graph = architecture.graph
        by_block = [kernel for block in graph.segments for kernel in runtime.kernels(block)]
        assert set(by_block) <= set(known)
        assert Counter(by_block) == Counter(runtime.kernels(graph))


def test_space_kernels_refuses_unknown_runtime_by_name() -> None:
    with pytest.raises(RequestError, match=r"no runtime 'tensorrt'.*tvm"):
        space_kernels(SPACE, "tensorrt")


def test_build_times_only_missing_kernels(empty: LatencyTable) -> None:
    runtime = FakeRuntime()
    seen: list[tuple[int, int, str]] = []
    first = build_table(
        empty, KERNELS[:5] + KERNELS[:2], runtime, progress=lambda *each: seen.append(each)
    )
    assert (first.ok, first.failed, first.added) == (5, 0, 5)
    assert [each[:2] for each in seen] == [(n, 10) for n in range(1, 11)]
    content = empty.path.read_bytes()
    second = build_table(LatencyTable.open(empty.path, runtime=runtime), KERNELS, runtime)
    assert second.added == len(KERNELS) - 5
    assert runtime.timed == runtime.retimed == KERNELS
    assert empty.path.read_bytes().startswith(content)


def test_build_records_failed_kernel_and_goes_on(empty: LatencyTable) -> None:
    kernels, broken = KERNELS[:4], KERNELS[1]
    runtime = FakeRuntime(broken=frozenset({broken.text}))
    seen: list[tuple[int, int, str]] = []
    result = build_table(empty, kernels, runtime, progress=lambda *each: seen.append(each))
    assert (result.ok, result.failed) == (3, 1)
    assert seen[-1][0] == seen[-1][1] == 4 + 3
    failed = record(empty, broken)
    assert failed.error == "RuntimeError: the compiler"
    assert build_table(empty, kernels, runtime).added == 0
    assert build_table(empty, kernels, FakeRuntime(), retry_failed=True).ok == 1
    lines = [json.loads(line) for line in empty.path.read_text().splitlines()]
    first = lines[(record(empty, broken).supersedes or 0) - 1]
    assert (first["kernel"], first["supersedes"]) == (broken.text, failed.line)
    assert LatencyTable.open(empty.path).latency_us(broken) == latency_us(broken)


def stop_after(timings: int, done: int, total: int, name: str) -> None:
    if done == timings:
        raise KeyboardInterrupt


@pytest.mark.parametrize("timings", [2, 7])
def test_stopped_build_continues_with_the_rounds_that_are_left(
    empty: LatencyTable, monkeypatch: pytest.MonkeyPatch, timings: int
) -> None:
    change(monkeypatch, TvmRuntime, rounds=4)
    runtime, kernels = FakeRuntime(), KERNELS[:3]
    with pytest.raises(KeyboardInterrupt):
        build_table(empty, kernels, runtime, progress=partial(stop_after, timings))
    assert len(runtime.timed) + len(runtime.retimed) == timings
    assert sum(rounds(empty, each) for each in kernels if empty.record(each)) == timings
    build_table(empty, kernels, runtime)
    assert [rounds(empty, kernel) for kernel in kernels] == [4] * 3
    assert (runtime.timed, len(runtime.retimed)) == (kernels, 9)


@pytest.mark.parametrize("count_", [1, 4, 8])
def test_kernels_are_timed_in_turn_at_many_rounds(
    empty: LatencyTable, monkeypatch: pytest.MonkeyPatch, count_: int
) -> None:
    """All rounds of the first kernel but two, or three of eight, are 20% too slow."""
    change(monkeypatch, TvmRuntime, rounds=count_)
    kernels = KERNELS[:2]
    quick = 2 if count_ < 8 else 3
    slowed = (*[1.2] * (count_ - quick), *[0.99] * (quick - 1))
    runtime = FakeRuntime(slowed={kernels[0].text: slowed})
    seen: list[tuple[int, int, str]] = []
    assert build_table(empty, kernels, runtime, progress=lambda *each: seen.append(each)).ok == 2
    assert (runtime.timed, runtime.retimed) == (kernels, kernels * (count_ - 1))
    for kernel in kernels:
        assert record(empty, kernel).complete
        assert empty.latency_us(kernel) == pytest.approx(latency_us(kernel), rel=0.011)
        assert rounds(empty, kernel) == (count_ if count_ > 1 else 0)
    assert seen[-1][0] == seen[-1][1] == 2 * count_
    lines = empty.path.read_text().splitlines()
    assert len(lines) <= 1 + len(runtime.capabilities.dispatch_parts) + 2 * 2


def test_groups_of_kernels_are_timed_one_after_the_other(
    empty: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "KERNELS_IN_TURN", 2)
    names = dict(zip((kernel.text for kernel in KERNELS), "ABC", strict=False))
    seen: list[str] = []
    build_table(
        empty,
        KERNELS[:3],
        FakeRuntime(),
        progress=lambda done, total, name: seen.append(names[name]),
    )
    assert "".join(seen) == "ABABCC"


def test_build_repeats_timings_until_they_agree(empty: LatencyTable) -> None:
    """One kernel agrees at once, one at the third timing, and one never."""
    steady, late, never = KERNELS[:3]
    slowed = {late.text: (0.7, 0.71), never.text: [0.9**n for n in range(1, 99)]}
    runtime = FakeRuntime(slowed=slowed)
    seen: list[tuple[int, int, str]] = []
    built = build_table(
        empty, [steady, late, never], runtime, progress=lambda *each: seen.append(each)
    )
    assert (built.ok, built.unstable) == (2, 1)
    assert [rounds(empty, each) for each in (steady, late, never)] == [2, 3, MAX_ROUNDS]
    assert seen[-1][0] == seen[-1][1] == 2 + 3 + MAX_ROUNDS
    assert empty.latency_us(late) == pytest.approx(0.7 * latency_us(late), rel=1e-3)
    assert (record(empty, never).status, record(empty, never).complete) == ("unstable", True)
    assert build_table(LatencyTable.open(empty.path, runtime=runtime), [never], runtime).added == 0


def test_build_without_time_is_continued_later(empty: LatencyTable) -> None:
    """It times each kernel once, which cannot be told from a disturbed timing."""
    kernels, runtime = KERNELS[:3], FakeRuntime()
    built = build_table(empty, kernels, runtime, seconds=0)
    assert (built.unstable, built.added, runtime.retimed) == (3, 3, [])
    reader = LatencyTable.open(empty.path, runtime=runtime)
    for kernel in kernels:
        assert reader.latency_us(kernel) == latency_us(kernel)
        assert (record(reader, kernel).status, record(reader, kernel).complete) == (
            "unstable", False,
        )  # fmt: skip
    before = reader.path.read_bytes()
    assert build_table(reader, kernels, runtime, seconds=0).added == 0
    assert reader.path.read_bytes() == before
    assert build_table(reader, kernels, runtime).ok == 3
    assert all(record(reader, kernel).complete for kernel in kernels)
    assert runtime.timed == runtime.retimed == kernels


def test_build_out_of_time_keeps_what_agrees(
    empty: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second timing takes a second. The time ends after four of eight rounds."""
    change(monkeypatch, TvmRuntime, rounds=8)
    steady, drifting = KERNELS[:2]
    runtime = FakeRuntime(slowed={drifting.text: (1.5, 2.5, 3.5)})
    clock = SimpleNamespace(monotonic=lambda: len(runtime.retimed), sleep=lambda seconds: None)
    for module in (build, rounds_module):
        monkeypatch.setattr(module, "time", clock)
    built = build_table(empty, [steady, drifting], runtime, seconds=5)
    assert rounds(empty, steady) == rounds(empty, drifting) == 4
    assert (built.ok, built.unstable) == (1, 1)
    assert [record(empty, each).complete for each in (steady, drifting)] == [False, False]


def test_build_again_keeps_fastest_timings(empty: LatencyTable) -> None:
    """A faster timing improves the table; a slower one changes nothing."""
    slow = FakeRuntime(slowed={KERNELS[0].text: (1.0, 0.98, 3.0)})
    build_table(empty, KERNELS, slow)
    before = [empty.latency_us(kernel) for kernel in KERNELS]
    seen: list[tuple[int, int, str]] = []
    build_table(empty, KERNELS, slow, again=True, progress=lambda *each: seen.append(each))
    assert [done for done, *_ in seen] == list(range(1, seen[-1][1] + 1))
    faster = [empty.latency_us(kernel) for kernel in KERNELS]
    assert faster[0] == pytest.approx(0.98 * before[0], rel=1e-3)
    assert faster[1:] == before[1:]
    assert rounds(empty, KERNELS[0]) == 4
    assert build_table(empty, KERNELS, slow).added == 0


def test_build_again_keeps_lowest_dispatch_costs(empty: LatencyTable) -> None:
    build_table(empty, KERNELS[:1], FakeRuntime())
    before = empty.dispatch.parts_us
    later = FakeRuntime(dispatch_us={"launch": 0.4, "invocation": 3.0})
    build_table(empty, KERNELS[:1], later)
    assert empty.dispatch.parts_us == before
    build_table(empty, KERNELS[:1], later, again=True)
    assert empty.dispatch.parts_us == {**before, "launch": 0.4}
    with empty.writing():
        empty.append(Record(kind="dispatch", name="launch", status="failed", error="no luck"))
    build_table(empty, KERNELS[:1], later)
    assert empty.dispatch.parts_us == {**before, "launch": 0.4, "invocation": 3.0}, "one set"


class SharedCache(FakeRuntime):
    """A runtime whose n-th timing of the miss curve takes `curve_us(n)`, alike for all parts."""

    taken: int = 0

    def time_miss_curve(self) -> Mapping[str, Timing]:
        self.taken += 1
        return {part: Timing((10.0 + self.taken * 7 % 20,)) for part in WEIGHT_PARTS}

    def time_dispatch(self) -> Mapping[str, Timing]:
        parts = super().time_dispatch()
        return {part: each for part, each in parts.items() if part not in WEIGHT_PARTS}


def curve(table: LatencyTable) -> tuple[int, float, bool]:
    """Return rounds and latency of the miss curve, and whether it is complete."""
    (found,) = {
        (len(each.rounds_us), each.latency_us, each.complete)
        for each in table.records("dispatch")
        if each.name in WEIGHT_PARTS
    }
    return found


@pytest.fixture
def six_curve_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CURVE_ROUNDS", 6)
    monkeypatch.setattr(build, "MAX_CURVE_DIFFERENCE", 0.5)


@pytest.fixture
def curve_after_each_kernel(six_curve_rounds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SECONDS_BETWEEN_CURVES", 0.0)
    monkeypatch.setattr(build, "KERNELS_IN_TURN", 1)


@pytest.mark.usefixtures("six_curve_rounds")
def test_miss_curve_is_timed_at_many_rounds(empty: LatencyTable) -> None:
    """They are 17, 24, 11, 18, 25 and 12 us."""
    runtime = SharedCache()
    build_table(empty, KERNELS, runtime)
    assert curve(empty) == curve(LatencyTable.open(empty.path)) == (6, 11.0, True)
    build_table(empty, KERNELS, runtime)
    assert runtime.taken == 6, "nothing was missing"
    build_table(empty, KERNELS, runtime, again=True)
    assert curve(empty) == (7, 11.0, True)


@pytest.mark.usefixtures("six_curve_rounds")
def test_stopped_build_continues_with_the_curve(empty: LatencyTable) -> None:
    runtime = SharedCache()
    build_table(empty, KERNELS, runtime, seconds=0)
    assert curve(empty) == (1, 17.0, False)
    build_table(empty, KERNELS, runtime)
    assert (runtime.taken, curve(empty)) == (6, (6, 11.0, True))


@pytest.mark.usefixtures("curve_after_each_kernel")
def test_curve_is_timed_between_the_kernels(empty: LatencyTable) -> None:
    runtime = SharedCache()
    taken: list[int] = []
    build_table(empty, KERNELS[:9], runtime, progress=lambda *_: taken.append(runtime.taken))
    assert sorted(set(taken)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.usefixtures("curve_after_each_kernel")
def test_killed_build_has_the_curve_on_the_disk(empty: LatencyTable) -> None:
    runtime = SharedCache()
    on_disk: list[int] = []

    def read(*_: object) -> None:
        on_disk.append(runtime.taken - curve(LatencyTable.open(empty.path))[0])

    build_table(empty, KERNELS[:9], runtime, progress=read)
    assert set(on_disk) == {0}


def test_finished_kernels_with_readings_of_another_kind_stay_as_they_are(
    empty: LatencyTable,
) -> None:
    """The readings are products of another numpy, so that the full speed is not known."""
    kernel = KERNELS[0]
    build_table(empty, KERNELS[:1], FakeRuntime())
    slow = [Timing((8.0,), 45.0, 8.0)] * 22
    with empty.writing():
        empty.append(
            Record.from_timings(
                "kernel",
                [*[Timing((5.0,), 30.0, 5.0)] * 2, *slow],
                name=kernel.text,
                policy=Policy(4),
                full_us=30.0,
                schedule={"tile": 1},
            )
        )
    first, *others = empty.path.read_text().splitlines(keepends=True)
    header = json.loads(first)
    header["timing"]["reading"] = "products by another numpy"
    empty.path.write_text("".join([json.dumps(header) + "\n", *others]))
    table = LatencyTable.open(empty.path, runtime=FakeRuntime())
    before = record(table, kernel)
    build_table(table, KERNELS[:2], FakeRuntime())
    assert record(table, kernel) == before
    assert before.latency_us == 5.0


def test_dispatch_costs_that_a_timer_does_not_time_are_named(empty: LatencyTable) -> None:
    class Forgetful(FakeRuntime):
        def time_dispatch(self) -> Mapping[str, Timing]:
            return {
                part: each for part, each in super().time_dispatch().items() if part != "launch"
            }

    with pytest.raises(MeasurementError, match="returns no launch"):
        build_table(empty, KERNELS[:1], Forgetful())


def test_runtime_without_curve_is_asked_once(empty: LatencyTable) -> None:
    asked = count()

    class Alone(FakeRuntime):
        def time_miss_curve(self) -> Mapping[str, Timing]:
            next(asked)
            return {}

    build_table(empty, KERNELS[:2], Alone())
    assert empty.dispatch.parts_us["weights_4mib"] == 30.0
    assert next(asked) == 1


@pytest.mark.parametrize("method", ["time_dispatch", "time_miss_curve"])
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
    failures = iter(range(build.MAX_ATTEMPTS - 1))
    table = LatencyTable.open_or_create(tmp_path, SharedCache())
    assert build_table(table, KERNELS[:2], SharedCache()).ok == 2
    assert not table.lacks_dispatch()
    failures = iter(range(build.MAX_ATTEMPTS))
    other = LatencyTable.open_or_create(tmp_path / "other", SharedCache())
    with pytest.raises(MeasurementError, match="no latency"):
        build_table(other, KERNELS[:2], SharedCache())
