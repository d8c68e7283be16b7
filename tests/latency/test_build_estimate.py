import pytest

from nas.errors import DeviceError
from nas.latency import build_estimate, space_kernels
from nas.latency.build_estimate import MAX_TIMED_KERNELS, estimate_build, estimate_build_with
from nas.space import load_space

KERNELS = space_kernels(load_space("squeezenet", image_size=32), "tvm")


class Clocked:
    """A runtime and its clock: a convolution takes 3 s plus half a second per pixel of its size."""

    moments = 2

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
    monkeypatch.setattr(build_estimate, "time", runtime)
    return runtime


def test_estimate_is_exact_if_kernels_of_a_kind_take_equally_long(clocked):
    estimate = estimate_build_with(KERNELS, clocked)
    assert estimate.kernels == len(KERNELS)
    assert estimate.timed_kernels == len(clocked.timed) == MAX_TIMED_KERNELS
    assert len(set(clocked.timed)) == MAX_TIMED_KERNELS
    assert len({(kernel.kind, kernel.kernel) for kernel in clocked.timed}) == 6
    assert estimate.estimated_seconds == sum(map(clocked.seconds, KERNELS))


def test_estimate_times_all_of_a_few_kernels(clocked):
    estimate = estimate_build_with(KERNELS[:3], clocked)
    assert sorted(k.text for k in clocked.timed) == sorted(k.text for k in KERNELS[:3])
    assert estimate.timed_kernels == 3


def test_estimate_gives_reason_if_no_kernel_can_be_timed(clocked):
    clocked.broken = True
    estimate = estimate_build_with(KERNELS, clocked)
    assert (estimate.estimated_seconds, estimate.timed_kernels) == (None, 0)
    assert "the compiler says no" in estimate.reason


def test_estimate_gives_reason_if_runtime_is_unusable(monkeypatch):
    def unusable(name):
        raise DeviceError(f"Runtime '{name}' cannot be used here: it is not installed.")

    monkeypatch.setattr(build_estimate, "open_runtime", unusable)
    estimate = estimate_build(KERNELS, "tvm")
    assert estimate.estimated_seconds is None
    assert "it is not installed" in estimate.reason
