from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from fake_runtime import FakeRuntime

import nas.space
from nas.errors import RequestError
from nas.latency import LatencyTable, Progress, build_table, space_kernels
from nas.latency.runtimes.tvm import fusion

SPACE = nas.space.load("mobilenet_tiny").on(image_size=8, channels=1, classes=10)


@pytest.mark.parametrize("image_size", [8, 33])
@pytest.mark.parametrize("name", nas.space.names())
def test_a_spaces_kernels_cover_its_architectures(name: str, image_size: int) -> None:
    space = nas.space.load(name).on(image_size=image_size, channels=3, classes=10)
    known = space_kernels(space, "tvm")
    assert len(set(known)) == len(known)
    rng = np.random.default_rng(0)
    drawn = [space.smallest, space.largest, *(space.sample(rng) for _ in range(60))]
    needed = {kernel for each in drawn for kernel in fusion.kernels(space.lower(each))}
    assert needed <= set(known)


def test_a_build_adds_only_what_is_missing(tmp_path: Path) -> None:
    runtime = FakeRuntime()
    kernels = space_kernels(SPACE, "tvm")
    table = LatencyTable.open_or_create(tmp_path, runtime)
    seen: list[Progress] = []
    first = build_table(table, kernels[:5] + kernels[:2], runtime, progress=seen.append)
    assert (first.ok, first.failed, first.added) == (5, 0, 5)
    assert [(each.done, each.total) for each in seen] == [(n, 5) for n in range(1, 6)]
    assert seen[-1].remaining_seconds == 0
    content = table.path.read_bytes()
    second = build_table(LatencyTable.open_or_create(tmp_path, runtime), kernels, runtime)
    assert second.added == len(kernels) - 5
    assert runtime.timed == kernels
    assert table.path.read_bytes().startswith(content)


def test_a_kernel_that_fails_is_a_record_and_the_build_goes_on(tmp_path: Path) -> None:
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
    found = table.record(kernels[1])
    assert found is not None
    assert found.supersedes == record.line
    LatencyTable.open(table.path).latency_us(kernels[1])


BUILD = """
import sys
import nas.space
from fake_runtime import FakeRuntime
from nas.latency import LatencyTable, build_table, space_kernels

space = nas.space.load("mobilenet_tiny").on(image_size=8, channels=1, classes=10)
runtime = FakeRuntime(seconds=float(sys.argv[2]))
table = LatencyTable.open_or_create(sys.argv[1], runtime)
build_table(table, space_kernels(space, "tvm"), runtime)
"""


def _build(folder: Path, seconds: float) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(seconds)],
        env={**os.environ, "PYTHONPATH": path},
    )


def test_a_killed_build_continues_and_ends_in_the_same_table(tmp_path: Path) -> None:
    assert _build(tmp_path / "whole", 0).wait(60) == 0
    (whole,) = (tmp_path / "whole").glob("*.jsonl")
    killed = tmp_path / "killed" / whole.name
    for lines in (6, 14):
        process = _build(killed.parent, 0.05)
        deadline = time.monotonic() + 60
        while not killed.exists() or killed.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, "the build ended before it could be killed"
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        assert killed.read_bytes().count(b"\n") < whole.read_bytes().count(b"\n")
    assert _build(killed.parent, 0).wait(60) == 0
    assert killed.read_text().splitlines()[1:] == whole.read_text().splitlines()[1:]


def test_an_unknown_runtime_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"no runtime 'tensorrt'.*tvm"):
        space_kernels(SPACE, "tensorrt")
