"""What MetaSchedule is given to tune computes what torch computes, and so does what it finds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import tvm
from torch.nn import functional as F  # noqa: N812

from nas.graph import Channels, Graph, Op, Slot
from nas.latency.kernel import Kernel
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.metaschedule import program
from nas.schedules.templates import Expansion

UNSCHEDULED = {"tuner": program.TUNER, "trials": 1, "trace": [[], []]}

KERNELS = [
    "conv2d 20x5x7 -> 24x5x7 k1 s1 p0 g1 bias relu",
    "conv2d 20x5x7[4:12] -> 24x5x7 k1 s1 p0 g1",
    "conv2d 7x9x8 -> 13x9x8 k3 s1 p1 g1 bias relu6",
    "conv2d 8x10x10[2:7] -> 6x5x5 k5 s2 p2 g1 bias hard_swish",
    "conv2d 3x13x12 -> 8x4x3 k7 s2 p0 g1 bias",
    "conv2d 16x8x8 -> 24x4x4 k1 s2 p0 g1 bias",
    "conv2d 24x6x5 -> 36x6x5 k1 s1 p0 g3 bias relu",
    "conv2d 8x6x6 -> 16x3x3 k3 s2 p1 g4 bias",
    "conv2d 14x7x7 -> 14x7x7 k3 s1 p1 g14 bias relu",
    "conv2d 20x9x9[3:13] -> 10x4x4 k5 s2 p1 g10 bias",
    "conv2d 6x8x7 expanded bias relu6 -> 18x8x7 k3 s1 p1 g18 bias relu6",
    "conv2d 9x8x7[2:8] expanded bias hard_swish -> 18x4x4 k3 s2 p1 g18 bias",
    "linear 64x1x1 -> 40x1x1 bias",
    "conv2d 12x5x6 -> 8x5x6 k1 s1 p0 g1 bias add relu",
    "conv2d 12x5x6 -> 8x5x6 k1 s1 p0 g1 bias add:20x5x6[3:11]",
    "conv2d 12x5x6 -> 8x5x6 k3 s1 p1 g1 bias hard_sigmoid multiply add",
    "conv2d 12x5x6 -> 8x5x6 k1 s1 p0 g2 bias multiply:16x1x1[4:12] relu",
    "conv2d 12x1x1 -> 8x1x1 k1 s1 p0 g1 bias add hard_sigmoid",
    "conv2d batch2 12x5x6 -> 8x5x6 k1 s1 p0 g1 bias multiply add relu",
    "conv2d batch3 8x6x6 -> 16x3x3 k3 s2 p1 g4 bias",
    "conv2d batch2 6x8x7 expanded bias relu6 -> 18x8x7 k3 s1 p1 g18 bias relu6",
    "linear batch2 64x1x1 -> 40x1x1 bias",
]

ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
}


def run(runtime: TvmRuntime, kernel: Kernel, schedule: dict, arrays: dict) -> np.ndarray:
    """A kernel's result as images x channels x height x width."""
    templates = runtime.timer.templates
    function = templates.function(kernel, schedule, "main")
    library = tvm.tirx.build(tvm.IRModule({"main": function}), templates.target, "tirx")
    expansion = Expansion(arrays["ew"], arrays["eb"]) if kernel.is_expanded else None
    bias = arrays["b"] if kernel.has_bias else None
    constants = templates.pack(kernel, schedule, arrays["w"], bias, expansion)
    flat = [each.transpose(0, 2, 3, 1).reshape(-1) for each in arrays["operands"]]
    result = tvm.runtime.tensor(np.zeros(kernel.batch * np.prod(kernel.output), np.float32))
    library["main"](
        *(tvm.runtime.tensor(each) for each in [flat[0], *constants, *flat[1:]]), result
    )
    c, h, w = kernel.output
    return result.numpy().reshape(kernel.batch, h, w, c).transpose(0, 3, 1, 2)


def drawn(kernel: Kernel) -> dict:
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    found = {
        "operands": [normal((kernel.batch, *operand.shape)) for operand in kernel.operands],
        "w": normal(kernel.weight_shape),
        "b": normal(kernel.output[:1]),
    }
    if kernel.is_expanded:
        found |= {"ew": normal(kernel.expansion_shape), "eb": normal((kernel.groups,))}
    return found


def expected(kernel: Kernel, arrays: dict) -> np.ndarray:
    tensors = [
        torch.from_numpy(each)[:, operand.start : operand.stop]
        for each, operand in zip(arrays["operands"], kernel.operands, strict=True)
    ]
    x = tensors.pop(0)
    w = torch.from_numpy(arrays["w"])
    if kernel.expansion is not None:
        x = F.conv2d(x, torch.from_numpy(arrays["ew"]), torch.from_numpy(arrays["eb"]))
        for step in kernel.expansion[1:]:
            x = ACTIVATIONS[step](x)
    w = w.reshape(*w.shape, 1, 1) if kernel.kind == "linear" else w
    y = F.conv2d(x, w, None, kernel.stride, kernel.padding, 1, kernel.groups)
    for step in kernel.epilogue:
        if step == "bias":
            y = y + torch.from_numpy(arrays["b"])[:, None, None]
        elif step.startswith("add"):
            y = y + tensors.pop(0)
        elif step.startswith("multiply"):
            y = y * tensors.pop(0)
        else:
            y = ACTIVATIONS[step](y)
    assert y.shape == (kernel.batch, *kernel.output)
    return y.numpy()


@pytest.mark.parametrize("text", KERNELS)
def test_a_definition_computes_what_torch_computes(text: str) -> None:
    kernel = Kernel.parse(text)
    arrays = drawn(kernel)
    reference = expected(kernel, arrays)
    found = run(TvmRuntime(), kernel, UNSCHEDULED, arrays)
    assert np.abs(found - reference).max() < 1e-5 * np.abs(reference).max()


def test_only_kernels_with_weights_are_tuned() -> None:
    kernel = Kernel.parse("max_pool 8x6x6 -> 8x3x3 k2 s2 p0 g1")
    with pytest.raises(ValueError, match="convolutions and linear layers"):
        TvmRuntime().tune_kernel(kernel, 1)


def test_a_trace_of_another_kernel_is_refused() -> None:
    runtime = TvmRuntime()
    kernel = Kernel.parse(KERNELS[0])
    schedule = {**UNSCHEDULED, "trace": [[["GetSBlock", [], ["other", "main"], ["b0"]]], []]}
    with pytest.raises(ValueError, match="its trace is not one of this kernel"):
        runtime.timer.templates.function(kernel, schedule, "main")


def test_what_is_found_survives_json_and_computes_right_in_a_network(
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
    found = json.loads(json.dumps(dict(runtime.tune_kernel(first, 3))))
    assert (found["tuner"], found["trials"]) == ("metaschedule", 3)
    assert found["trace"] != UNSCHEDULED["trace"]
    rng = np.random.default_rng(0)
    weights = {
        "0": rng.standard_normal((24, 8, 3, 3)).astype(np.float32),
        "0.bias": rng.standard_normal(24).astype(np.float32),
        "1": rng.standard_normal((24, 24, 1, 1)).astype(np.float32),
        "1.bias": rng.standard_normal(24).astype(np.float32),
    }
    schedules = {first: found, second: runtime.timer.templates.candidates(second)[0]}
    image = rng.standard_normal((8, 9, 9)).astype(np.float32)
    network = TvmRuntime().compile(graph, schedules, weights)
    assert network.launched == [first, second]
    w = {name: torch.from_numpy(value) for name, value in weights.items()}
    hidden = F.relu(F.conv2d(torch.from_numpy(image)[None], w["0"], w["0.bias"], padding=1))
    reference = F.conv2d(hidden, w["1"], w["1.bias"]).numpy().reshape(-1)
    error = np.abs(network.run(image) - reference).max() / np.abs(reference).max()
    assert error < 1e-5
    assert runtime.retime_kernel(first, found).latency_us > 0
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""
