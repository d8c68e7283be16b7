"""LiteRT with a delegate on a device that is this machine, behind a real OpenSSH server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import nas.space
from nas.errors import DeviceError, MeasurementError
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency import open_runtime
from nas.latency.runtime import Runtime
from nas.runtimes.litert.runtime import LiteRt
from nas.transports import split_address
from tests.runtimes.delegates import AVERAGE_POOL_2D, CONV_2D, compile_delegate
from tests.transports.servers import loopback

CONV = Kernel.parse("conv2d int8 16x8x8 -> 32x8x8 k1 s1 p0 g1 bias relu6")
POOLING = Kernel.parse("avg_pool int8 24x8x8 -> 24x4x4 k2 s2 p0 g1")
CHAIN = Kernel.parse("conv2d int8 32x8x8 -> 32x8x8 k3 s1 p1 g32 bias relu6")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_delegate(tmp_path_factory.mktemp("delegate"))


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with loopback() as target:
        yield target


@pytest.fixture
def graph() -> Graph:
    return nas.space.load_space(
        "squeezenet_tiny", image_size=8, channels=1, classes=3
    ).smallest.graph


def opened(target: str, library: Path | None = None, *options: str) -> Runtime:
    if library is not None:
        target += f"&delegate={library}"
    if options:
        target += f"&delegate_options={','.join(options)}"
    return open_runtime("litert", target=target, dtype="int8")


def test_delegate_is_in_fingerprint_and_rows(target: str, library: Path, graph: Graph) -> None:
    options = (CONV_2D, "microseconds=200")
    runtime = opened(target, library, *options)
    fingerprint = runtime.fingerprint
    assert fingerprint.target == "device?delegate=libstandin_delegate.so"
    assert fingerprint.versions["libstandin_delegate.so"].endswith(" ".join(options))
    schedule, timed = runtime.timer.time_kernel(CONV)
    # One element of every copy's output is copied by another operator.
    copies = schedule["copies"]
    assert (schedule["delegated_operators"], schedule["operators"]) == (copies, 2 * copies)
    # LiteRT makes one part of all of them, which waits once.
    assert timed.latency_us * copies > 150
    schedule, timed = runtime.timer.time_kernel(CHAIN)
    assert schedule["delegated_operators"] == 0
    with pytest.raises(MeasurementError, match="no average pooling in int8"):
        runtime.timer.time_kernel(POOLING)
    assert min(runtime.compile(graph, {}).evaluate(1, 2)) > 200e-6
    runtime.release()
    # The table has no address; its target is opened with one.
    at = f"{target}&delegate={library}"
    opened_again = LiteRt.at_address(fingerprint.target, at)
    assert split_address(opened_again, LiteRt.settings) == split_address(at, LiteRt.settings)


def test_pooling_in_int8_is_timed_if_the_delegate_takes_it(target: str, library: Path) -> None:
    """XNNPACK has none."""
    runtime = opened(target, library, AVERAGE_POOL_2D)
    schedule, timed = runtime.timer.time_kernel(POOLING)
    assert schedule["delegated_operators"] == schedule["copies"]
    assert timed.latency_us > 0
    runtime.release()


def test_pooling_in_int8_is_refused_without_a_delegate(target: str) -> None:
    runtime = opened(target)
    with pytest.raises(MeasurementError, match="no average pooling in int8"):
        runtime.timer.time_kernel(POOLING)
    runtime.release()


def test_delegate_that_crashes_fails_kernels_but_not_the_device(target: str, library: Path) -> None:
    runtime = opened(target, library, CONV_2D, "does=crash")
    with pytest.raises(MeasurementError, match="ended by SIGABRT"):
        runtime.timer.time_kernel(CONV)
    assert runtime.timer.time_kernel(CHAIN)[1].latency_us > 0
    runtime.release()


def test_delegate_that_does_not_load_is_refused(target: str, tmp_path: Path) -> None:
    wrong = tmp_path / "libwrong.so"
    wrong.write_bytes(b"no library")
    with pytest.raises(DeviceError, match=r"libwrong.so .* does not load.*Correct delegate="):
        opened(target, wrong)
    with pytest.raises(DeviceError, match="No such file"):
        opened(target, tmp_path / "none.so")
