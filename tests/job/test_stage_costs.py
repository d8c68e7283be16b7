"""What the units of work of a job cost: which measurements plans follow."""

import pytest

from nas.job import stage_costs
from nas.latency.build import space_kernels
from nas.latency.timing import MAX_MOMENTS
from nas.space import load_space
from tests.latency.fake_runtime import FakeRuntime

SPACE = load_space("mobilenet_tiny", image_size=8, classes=10, channels=1)

SCHEDULES = {kernel: {"tile": 1} for kernel in space_kernels(SPACE, FakeRuntime())[:4]}


@pytest.mark.parametrize(
    ("factors", "share"),
    [((1.0, 1.02, 1.1, 1.2), 0), ((1.0, 1.1, 1.2, 1.3), 1 / 4), ((1.3, 1.2, 1.1, 1.0), 1 / 4)],
    ids=["two agree", "slower and slower", "faster and faster"],
)
def test_plan_has_as_many_moments_as_the_timings_of_a_few_kernels_need(monkeypatch, factors, share):
    monkeypatch.setattr("nas.latency.timing.SECONDS_BETWEEN_MOMENTS", 0.001)
    runtime = FakeRuntime(slowed={[*SCHEDULES][2].text: factors})
    assert stage_costs._disagreeing(runtime, SCHEDULES) == share
    most_s = 0.001 * (MAX_MOMENTS - runtime.moments)
    assert stage_costs._further_moments_s(runtime, share) == pytest.approx(share * most_s)


def test_one_timing_is_enough_where_latencies_never_differ(monkeypatch):
    runtime = FakeRuntime()
    monkeypatch.setattr(FakeRuntime, "moments", 1)
    assert stage_costs._disagreeing(runtime, SCHEDULES) == 0
    assert runtime.retimed == []
