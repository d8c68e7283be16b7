from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import nas.space
from nas.errors import RequestError
from nas.latency import BuildProgress, LatencyTable, build_table, space_kernels
from nas.latency.record import Record
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.fake_runtime import FakeRuntime, latency_us

SPACE = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1)


@pytest.mark.parametrize("image_size", [8, 33])
@pytest.mark.parametrize("name", nas.space.space_names())
def test_space_kernels_cover_all_architectures(name: str, image_size: int) -> None:
    space = nas.space.load_space(name, image_size=image_size)
    known = space_kernels(space, "tvm")
    assert len(set(known)) == len(known)
    rng = np.random.default_rng(0)
    drawn = [space.smallest, space.largest, *(space.sample(rng) for _ in range(60))]
    needed = {kernel for each in drawn for kernel in TvmRuntime().kernels(each.graph)}
    assert needed <= set(known)


def test_build_times_only_missing_kernels(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    kernels = space_kernels(SPACE, "tvm")
    table = LatencyTable.open_or_create(tmp_path, runtime)
    seen: list[BuildProgress] = []
    first = build_table(table, kernels[:5] + kernels[:2], runtime, progress=seen.append)
    assert (first.ok, first.failed, first.added) == (5, 0, 5)
    assert [(each.done, each.total) for each in seen] == [(n, 10) for n in range(1, 11)]
    content = table.path.read_bytes()
    second = build_table(LatencyTable.open_or_create(tmp_path, runtime), kernels, runtime)
    assert second.added == len(kernels) - 5
    assert runtime.timed == runtime.retimed == kernels
    assert table.path.read_bytes().startswith(content)


def test_build_records_failed_kernel_and_goes_on(tmp_path: Path) -> None:
    kernels = space_kernels(SPACE, "tvm")[:4]
    runtime = FakeRuntime(broken=frozenset({kernels[1].text}))
    table = LatencyTable.open_or_create(tmp_path, runtime)
    result = build_table(table, kernels, runtime)
    assert (result.ok, result.failed) == (3, 1)
    record = table.record(kernels[1])
    assert record is not None
    assert record.error == "RuntimeError: the compiler"
    assert build_table(table, kernels, runtime).added == 0
    runtime.broken = frozenset()
    assert build_table(table, kernels, runtime, retry_failed=True).ok == 1
    retried = table.record(kernels[1])
    assert retried is not None
    lines = [json.loads(line) for line in table.path.read_text().splitlines()]
    first = lines[(retried.supersedes or 0) - 1]
    assert (first["kernel"], first["supersedes"]) == (kernels[1].text, record.line)
    LatencyTable.open(table.path).latency_us(kernels[1])


BUILD = """
import sys
import nas.space
from nas.latency.record import Record
from nas.runtimes.tvm.runtime import TvmRuntime
from tests.latency.fake_runtime import FakeRuntime, latency_us
from nas.latency import LatencyTable, build_table, space_kernels, timing

timing.SECONDS_BETWEEN_MOMENTS = 0.0
space = nas.space.load_space("mobilenet_tiny", image_size=8, channels=1, classes=10)
runtime = FakeRuntime(seconds=float(sys.argv[2]))
table = LatencyTable.open_or_create(sys.argv[1], runtime)
build_table(table, space_kernels(space, "tvm"), runtime)
"""


def _build(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(seconds)],
        env={**os.environ, "PYTHONPATH": path},
    )


@pytest.mark.slow
def test_killed_build_continues_to_the_same_table(tmp_path: Path) -> None:
    assert _build(tmp_path / "whole", 0).wait(60) == 0
    (whole,) = (tmp_path / "whole").glob("*.jsonl")
    killed = tmp_path / "killed" / whole.name
    for lines in (6, 60):
        process = _build(killed.parent, 0.05)
        deadline = time.monotonic() + 60
        while not killed.exists() or killed.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, "the build ended before it could be killed"
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        assert killed.read_bytes().count(b"\n") < whole.read_bytes().count(b"\n")
    assert _build(killed.parent, 0).wait(60) == 0
    assert _contents(killed) == _contents(whole)


def _contents(path: Path) -> dict[str, tuple[object, ...]]:
    """Return the content of each record of a table by its key."""
    return {
        record.key: (record.status, record.samples_us, record.medians_us, record.settled)
        for record in LatencyTable.open(path).records()
    }


def stop_after(timings: int, progress: BuildProgress) -> None:
    if progress.done == timings:
        raise KeyboardInterrupt


def test_stopped_build_retimes_kernels_timed_once(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    kernels = space_kernels(SPACE, "tvm")[:3]
    table = LatencyTable.open_or_create(tmp_path, runtime)

    with pytest.raises(KeyboardInterrupt):
        build_table(table, kernels, runtime, progress=partial(stop_after, 2))
    assert (runtime.timed, runtime.retimed) == (kernels[:2], [])
    build_table(table, kernels, runtime)
    assert (runtime.timed, runtime.retimed) == (kernels, kernels)
    assert all(
        len(record.medians_us) == 2
        for record in table.records()
        if record.name in map(str, kernels)
    )


def test_build_repeats_timings_until_two_agree(tmp_path: Path) -> None:
    """One kernel agrees at once, one at the third timing, and one never."""
    steady, late, never = space_kernels(SPACE, "tvm")[:3]
    slowed = {late.text: (0.7, 0.71), never.text: (0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.7)}
    runtime = FakeRuntime(slowed=slowed)
    table = LatencyTable.open_or_create(tmp_path, runtime)
    seen: list[BuildProgress] = []
    built = build_table(table, [steady, late, never], runtime, progress=seen.append)
    assert (built.ok, built.unstable) == (2, 1)
    assert seen[-1].done == seen[-1].total == 3 + 1 + 2 + 7
    record = table.record(late)
    assert record is not None
    assert record.latency_us == pytest.approx(0.705 * latency_us(late), rel=1e-3)
    assert len(record.medians_us) == 3
    assert len(record.samples_us) == 12
    assert [runtime.retimed.count(kernel) for kernel in (steady, late, never)] == [1, 2, 7]
    unsure = table.record(never)
    assert unsure is not None
    assert (unsure.status, unsure.settled) == ("unstable", True)
    assert build_table(LatencyTable.open(table.path, runtime=runtime), [never], runtime).added == 0


def test_space_kernels_refuses_unknown_runtime_by_name() -> None:
    with pytest.raises(RequestError, match=r"no runtime 'tensorrt'.*tvm"):
        space_kernels(SPACE, "tensorrt")


def test_build_again_keeps_fastest_timings(tmp_path: Path) -> None:
    """A faster timing improves the table; a slower one changes nothing."""
    kernels = space_kernels(SPACE, "tvm")
    slow = FakeRuntime(slowed={kernels[0].text: (1.0, 0.98, 3.0)})
    table = LatencyTable.open_or_create(tmp_path, slow)
    build_table(table, kernels, slow)
    before = [table.latency_us(kernel) for kernel in kernels]
    seen: list[BuildProgress] = []
    build_table(table, kernels, slow, again=True, progress=seen.append)
    assert len(slow.retimed) == 2 * len(kernels)
    assert [each.done for each in seen] == list(range(1, len(seen) + 1))
    faster = [table.latency_us(kernel) for kernel in kernels]
    assert faster[0] < before[0]
    assert faster[1:] == before[1:]
    build_table(table, kernels, slow, again=True)
    assert [table.latency_us(kernel) for kernel in kernels] == faster
    assert len(table.record(kernels[0]).medians_us) == 4
    assert build_table(table, kernels, slow).added == 0


def test_build_again_keeps_fastest_dispatch_costs(tmp_path: Path) -> None:
    kernels = space_kernels(SPACE, "tvm")
    table = LatencyTable.open_or_create(tmp_path, FakeRuntime())
    build_table(table, kernels, FakeRuntime())
    before = table.dispatch_us
    later = FakeRuntime(dispatch_us={"launch": 0.4, "invocation": 3.0})
    build_table(table, kernels, later)
    assert table.dispatch_us == before
    build_table(table, kernels, later, again=True)
    assert table.dispatch_us == {**before, "launch": 0.4}


def test_incomplete_costs_make_place_for_a_complete_set(tmp_path: Path) -> None:
    kernels = space_kernels(SPACE, "tvm")
    table = LatencyTable.open_or_create(tmp_path, FakeRuntime())
    build_table(table, kernels, FakeRuntime())
    with table.writing():
        table.append(Record("dispatch", "launch_few", "failed", error="no luck"))
    later = FakeRuntime(dispatch_us={"launch_few": 0.1, "launch": 0.4, "invocation": 3.0})
    build_table(table, kernels, later)
    costs_us = table.dispatch_us
    assert (costs_us["launch_few"], costs_us["launch"], costs_us["invocation"]) == (0.1, 0.4, 3.0)


@pytest.mark.parametrize("moments", [1, 3, 8])
def test_build_times_kernels_at_many_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: int
) -> None:
    """The first moments of the first kernel are 20% too slow; the fastest two count."""
    monkeypatch.setattr(TvmRuntime, "moments", moments)
    first, second = space_kernels(SPACE, "tvm")[:2]
    runtime = FakeRuntime(slowed={first.text: (1.0, *[1.2] * (moments - 2), 0.99)})
    table = LatencyTable.open_or_create(tmp_path, runtime)
    seen: list[BuildProgress] = []
    built = build_table(table, [first, second], runtime, progress=seen.append)
    assert (built.ok, built.unstable) == (2, 0)
    assert runtime.retimed == [first, second] * (moments - 1), "in turn"
    for kernel in (first, second):
        record = table.record(kernel)
        assert record is not None
        assert len(record.medians_us) == moments
        assert record.settled
    assert table.latency_us(second) == latency_us(second)
    assert table.latency_us(first) <= latency_us(first)
    assert seen[-1].done == seen[-1].total == 2 * moments
    lines = table.path.read_text().splitlines()
    # A header, the dispatch costs, and at most three records a kernel.
    assert len(lines) <= 1 + len(runtime.dispatch_parts) + 3 * 2


@pytest.mark.parametrize(
    ("rest_s", "order"),
    [
        (60.0, "A1 B1 A2 B2 C1 D1 A3 B3 C2 D2 E1 F1 C3 D3 E2 F2 E3 F3 A4 B4 C4 D4 E4 F4"),
        (0.0, "A1 B1 A2 B2 C1 D1 A3 B3 C2 D2 E1 F1 C3 D3 E2 F2 A4 B4 E3 F3 C4 D4 E4 F4"),
    ],
)
def test_build_times_kernels_again_while_others_are_compiled(
    rest_s: float, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels A to F, four of which are in turn, at four moments: the first, two and the last."""
    monkeypatch.setattr(TvmRuntime, "moments", 4)
    monkeypatch.setattr("nas.latency.build.KERNELS_IN_TURN", 4)
    monkeypatch.setattr("nas.latency.build.REST_SECONDS", rest_s)
    kernels = space_kernels(SPACE, "tvm")[:6]
    names = dict(zip((kernel.text for kernel in kernels), "ABCDEF", strict=True))
    table = LatencyTable.open_or_create(tmp_path, FakeRuntime())
    seen: list[str] = []

    def progress(state: BuildProgress) -> None:
        if state.record.kind == "kernel":
            seen.append(f"{names[state.record.name]}{len(state.record.medians_us)}")

    build_table(table, kernels, FakeRuntime(), progress=progress)
    assert " ".join(seen) == order


def test_build_interrupted_between_moments_keeps_its_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TvmRuntime, "moments", 8)
    kernels = space_kernels(SPACE, "tvm")[:2]
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path, runtime)

    with pytest.raises(KeyboardInterrupt):
        build_table(table, kernels, runtime, progress=partial(stop_after, 7))
    counts = [len(table.record(kernel).medians_us) for kernel in kernels]
    assert sum(counts) == 7
    build_table(table, kernels, runtime)
    assert [len(table.record(kernel).medians_us) for kernel in kernels] == [8, 8]
    assert len(runtime.retimed) == 2 * 7


def test_build_interrupted_while_it_compiles_keeps_its_timings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fourth of five kernels is interrupted; the three before were timed one to three times."""
    monkeypatch.setattr(TvmRuntime, "moments", 6)
    monkeypatch.setattr("nas.latency.build.KERNELS_IN_TURN", 4)
    kernels = space_kernels(SPACE, "tvm")[:5]

    class Interrupted(FakeRuntime):
        def time_kernel(self, kernel):
            if kernel == kernels[3]:
                raise KeyboardInterrupt
            return super().time_kernel(kernel)

    table = LatencyTable.open_or_create(tmp_path, FakeRuntime())
    with pytest.raises(KeyboardInterrupt):
        build_table(table, kernels, Interrupted())
    counts = [len(table.record(kernel).medians_us) for kernel in kernels[:3]]
    assert counts == [4, 3, 2]
    assert table.missing(kernels) == kernels[3:]


def test_runtime_with_one_moment_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TvmRuntime, "moments", 1)
    kernels = space_kernels(SPACE, "tvm")[:3]
    runtime = FakeRuntime()
    table = LatencyTable.open_or_create(tmp_path, runtime)
    assert build_table(table, kernels, runtime).ok == 3
    assert (runtime.timed, runtime.retimed) == (kernels, [])
