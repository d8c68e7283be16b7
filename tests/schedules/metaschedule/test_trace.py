"""Traces are applied to the kernel that they were found for."""

from __future__ import annotations

import pytest

from nas.latency.kernel import Kernel
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.metaschedule import trace

KERNEL = Kernel.parse("conv2d 20x5x7 -> 24x5x7 k1 s1 p0 g1 bias relu")


def test_only_schedules_of_metaschedule_have_a_trace() -> None:
    assert trace.has_trace({"tuner": "metaschedule", "trials": 1, "trace": [[], []]})
    assert not trace.has_trace({"channels": 2, "columns": 4, "order": "rows"})


def test_trace_of_another_kernel_is_refused() -> None:
    schedule = {
        "tuner": trace.TUNER,
        "trials": 1,
        "trace": [[["GetSBlock", [], ["other", "main"], ["b0"]]], []],
    }
    with pytest.raises(ValueError, match="the trace does not belong to this kernel"):
        TvmRuntime().timer.templates.function(KERNEL, schedule, "main")
