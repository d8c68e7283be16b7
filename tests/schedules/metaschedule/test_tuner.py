"""MetaSchedule tunes kernels with weights, and its schedules work in whole networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nas.graph import Channels, Graph, Op, Slot
from nas.latency.kernel import Kernel
from nas.runtimes.tvm.runtime import METASCHEDULE, TvmRuntime


def test_kernels_without_weights_are_not_tuned() -> None:
    kernel = Kernel.parse("max_pool 8x6x6 -> 8x3x3 k2 s2 p0 g1")
    with pytest.raises(ValueError, match="convolutions and linear layers"):
        TvmRuntime().tune_kernel(kernel, METASCHEDULE, 1)


def test_tuned_schedule_survives_json_and_computes_right_in_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xgboost")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    slots = [Slot(str(i), Channels.prefix(24, 24)) for i in range(2)]
    graph = Graph(
        (
            Op("input", (), (8, 9, 9)),
            Op("conv", (0,), (24, 9, 9), 3, 1, 1, 1, True, 0, slots[0]),
            Op("relu", (1,), (24, 9, 9)),
            Op("conv", (2,), (24, 9, 9), 1, 1, 0, 1, True, 0, slots[1]),
        )
    )
    runtime = TvmRuntime()
    first, second = runtime.kernels(graph)
    tuned = json.loads(json.dumps(dict(runtime.tune_kernel(first, METASCHEDULE, 3))))
    assert (tuned["tuner"], tuned["trials"]) == ("metaschedule", 3)
    assert tuned["trace"] != [[], []]
    rng = np.random.default_rng(0)
    weights = {
        "0": rng.standard_normal((24, 8, 3, 3)).astype(np.float32),
        "0.bias": rng.standard_normal(24).astype(np.float32),
        "1": rng.standard_normal((24, 24, 1, 1)).astype(np.float32),
        "1.bias": rng.standard_normal(24).astype(np.float32),
    }
    schedules = {first: tuned, second: runtime.timer.templates.candidates(second)[0]}
    image = rng.standard_normal((8, 9, 9)).astype(np.float32)
    network = TvmRuntime().compile(graph, schedules, weights)
    assert network.launched == [first, second]
    w = {name: torch.from_numpy(value) for name, value in weights.items()}
    hidden = F.relu(F.conv2d(torch.from_numpy(image)[None], w["0"], w["0.bias"], padding=1))
    reference = F.conv2d(hidden, w["1"], w["1.bias"]).numpy().reshape(-1)
    error = np.abs(network.run(image) - reference).max() / np.abs(reference).max()
    assert error < 1e-5
    assert runtime.retime_kernel(first, tuned).latency_us > 0
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""
