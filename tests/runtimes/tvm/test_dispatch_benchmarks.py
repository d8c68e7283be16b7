from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from tvm import relax

from nas.latency.cache_model import WEIGHT_PARTS, WEIGHTS_MIB
from nas.runtimes.tvm import dispatch_benchmarks
from nas.runtimes.tvm.kernel_timer import tvm_kernels
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.templates import build


def test_launch_networks_have_more_and_more_different_kernels() -> None:
    kernels = {
        name: tvm_kernels(graph) for name, graph in dispatch_benchmarks.launch_networks().items()
    }
    assert {name: len(own) for name, own in kernels.items()} == {"few": 3, "more": 12, "many": 60}
    assert len(set(kernels["many"])) == 60
    assert set(kernels["few"]) <= set(kernels["more"])


@pytest.mark.slow
def test_cache_benchmarks_read_what_their_parts_say(monkeypatch: pytest.MonkeyPatch) -> None:
    executables: list[relax.VMExecutable] = []

    def recording_build(*arguments: Any) -> relax.VMExecutable:
        executables.append(build(*arguments))
        return executables[-1]

    monkeypatch.setattr(dispatch_benchmarks, "build", recording_build)
    timer = TvmRuntime().timer
    benchmarks = dispatch_benchmarks.weight_benchmarks(timer.templates, timer.device)
    assert {"launch", "invocation", *benchmarks} == set(TvmRuntime.capabilities.dispatch_parts)
    code = executables[0].as_text()
    functions = dict(re.findall(r"^@(\w+)(.*?)(?=^@|\Z)", code, re.MULTILINE | re.DOTALL))
    set_bytes = dispatch_benchmarks.USES_WEIGHTS_OFTEN.weight_bytes
    for mib, part in zip(WEIGHTS_MIB, WEIGHT_PARTS, strict=True):
        calls = Counter(re.findall(r"call\s+(\w+)\s", functions[part]))
        assert calls["reader"] * set_bytes == mib << 20
    assert all(0 < seconds < 1 for seconds in benchmarks[WEIGHT_PARTS[1]](1, 3))
