import pytest

from nas.describe import building
from nas.describe.building import TIMED_KERNELS, estimate, estimate_with
from nas.errors import DeviceError
from nas.latency import space_kernels
from nas.space import load_space

KERNELS = space_kernels(load_space("squeezenet", image_size=32), "tvm")


class Clocked:
    """A runtime and its clock: a convolution takes 3 s and a half for each pixel of its window."""

    def __init__(self, broken=False):
        self.now, self.timed, self.broken = 0.0, [], broken

    def seconds(self, kernel):
        return 3 + kernel.kernel / 2 if kernel.kind == "conv2d" else 1

    def time_kernel(self, kernel):
        self.now += self.seconds(kernel)
        self.timed.append(kernel)
        if self.broken:
            raise RuntimeError("the compiler says no")
        return {"tile": 1}, None

    def retime_kernel(self, kernel, schedule):
        assert schedule == {"tile": 1}

    def perf_counter(self):
        return self.now


@pytest.fixture
def clocked(monkeypatch):
    runtime = Clocked()
    monkeypatch.setattr(building, "time", runtime)
    return runtime


def test_kinds_that_take_equally_long_are_estimated_exactly(clocked):
    found = estimate_with(KERNELS, clocked)
    assert found.kernels == len(KERNELS)
    assert found.timed_kernels == len(clocked.timed) == TIMED_KERNELS
    assert len(set(clocked.timed)) == TIMED_KERNELS
    assert len({(kernel.kind, kernel.kernel) for kernel in clocked.timed}) == 6
    assert found.estimated_seconds == sum(map(clocked.seconds, KERNELS))


def test_a_few_kernels_are_all_timed(clocked):
    found = estimate_with(KERNELS[:3], clocked)
    assert sorted(k.text for k in clocked.timed) == sorted(k.text for k in KERNELS[:3])
    assert found.timed_kernels == 3


def test_where_nothing_can_be_timed_there_is_no_estimate(clocked):
    clocked.broken = True
    found = estimate_with(KERNELS, clocked)
    assert (found.estimated_seconds, found.timed_kernels) == (None, 0)
    assert "the compiler says no" in found.reason


def test_a_runtime_that_cannot_be_used_gives_its_reason(monkeypatch):
    def unusable(name):
        raise DeviceError(f"Runtime '{name}' cannot be used here: it is not installed.")

    monkeypatch.setattr(building, "open_runtime", unusable)
    found = estimate(KERNELS, "tvm")
    assert found.estimated_seconds is None
    assert "it is not installed" in found.reason
