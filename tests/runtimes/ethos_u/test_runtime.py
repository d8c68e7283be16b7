"""Kernels and networks of the cycle model: what a table predicts, against whole networks."""

import numpy as np
import pytest

from nas.cli import predictions
from nas.errors import MeasurementError
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table, check_table, open_runtime, space_kernels
from nas.latency.build_estimate import estimate_build
from nas.runtimes.ethos_u.context import KernelInContext
from nas.runtimes.ethos_u.networks import file_of
from nas.runtimes.ethos_u.runtime import EthosURuntime
from nas.runtimes.ethos_u.vela import compile_file
from nas.space import load_space

pytest.importorskip("ethosu")


def runtime_for(target="ethos-u55-128"):
    return open_runtime("ethos_u", target=target, dtype="int8")


def space(name="squeezenet_tiny"):
    return load_space(name, image_size=32, channels=3, classes=10)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("ethos-u55-128", "mobilenet_tiny"),
        ("ethos-u65-256", "shufflenet_tiny"),
        ("ethos-u85-256", "squeezenet_tiny"),
    ],
)
def test_sum_of_kernels_is_the_whole_network(name, target, tmp_path):
    runtime = runtime_for(target)
    table = LatencyTable.open_or_create(tmp_path, runtime)
    result = build_table(table, space_kernels(space(name), runtime), runtime.timer)
    assert (result.failed, result.unstable) == (0, 0)
    records = table.records("kernel")
    assert {record.basis for record in records} == {runtime.basis}
    assert all(len(record.samples_us) == 1 for record in records)
    rng = np.random.default_rng(0)
    check = check_table(table, [space(name)], runtime, nets=6, rng=rng, references=False)
    assert check.agreement.mape < 0.05
    assert check.agreement.kendall_tau > 0.8
    assert check.basis == runtime.basis
    assert check.retiming_spread is None, "a model is asked once"


def test_build_is_estimated_for_its_first_target():
    estimate = estimate_build(space_kernels(space(), "ethos_u"), "ethos_u")
    assert estimate.reason == ""
    assert estimate.estimated_seconds > 0


@pytest.mark.parametrize(
    ("text", "note", "added"),
    [
        ("concat int8 58x7x7 58x7x7 -> 116x7x7 shuffle2", "channel shuffle as a transposition", 1),
        ("copy int8 48x7x7 -> 48x7x7 shuffle3", "channel shuffle as a transposition", 1),
        ("conv2d int8 24x7x7 -> 48x7x7 k1 s1 p0 g3 bias", "grouped convolution as 3", 0),
        ("conv2d int8 24x7x7 -> 48x7x7 k1 s1 p0 g3 bias relu", "grouped convolution as 3", None),
        ("conv2d int8 24x7x7 -> 48x7x7 k1 s1 p0 g1 bias hard_swish", "hard swish as a lookup", 0),
        ("avg_pool int8 24x8x8 -> 24x4x4 k3 s2 p1 g1", "padding as copies", None),
        ("max_pool int8 24x8x8 -> 24x4x4 k2 s2 p0 g1", "", 0),
        ("conv2d int8 48x7x7 -> 48x7x7 k3 s1 p1 g48 bias relu6", "", 0),
    ],
)
def test_rewritten_kernel_runs_and_is_named_with_its_cost(text, note, added):
    """`added` is the part of the latency that the rewriting costs, None for less than all."""
    runtime, kernel = runtime_for(), Kernel.parse(text)
    schedule, timing = runtime.timer.time_kernel(kernel)
    assert timing.latency_us == pytest.approx(schedule["cycles"] / 500, rel=1e-3)
    assert (schedule["weights"], schedule["seed"]) == ("laplace", 0)
    assert runtime.kernel_note(kernel).startswith(note)
    cost_us = runtime.rewriting_us(kernel, schedule)
    assert sum(schedule["operations_us"].values()) == pytest.approx(timing.latency_us, rel=1e-3)
    if added is None:
        kind = "MemoryCopy" if kernel.padding else "Relu"
        assert 0 < cost_us == schedule["operations_us"][kind] < timing.latency_us
    else:
        assert cost_us == pytest.approx(added * timing.latency_us, rel=1e-3)
    if kernel.groups == 3:
        assert schedule["operations"]["Conv2D"] == 3
    if kernel.shuffle_groups == 2:
        assert schedule["operations"]["Transpose"] == 1


def test_prediction_says_what_rewriting_costs(tmp_path, capsys):
    runtime, shuffles = runtime_for(), space("shufflenet_tiny")
    table = LatencyTable.open_or_create(tmp_path, runtime)
    build_table(table, space_kernels(shuffles, runtime), runtime.timer)
    prediction = table.predict(shuffles.largest)
    shown = predictions.to_json(table, shuffles.largest, prediction)
    rewritten = [row for row in shown["kernels"] if row["note"]]
    assert {row["note"] for row in rewritten} == {"channel shuffle as a transposition"}
    cost_us = sum(row["rewriting_us"] for row in rewritten)
    assert cost_us == pytest.approx(sum(row["latency_us"] for row in rewritten), rel=1e-3)
    predictions.show(table, shuffles.largest, prediction)
    text = capsys.readouterr().out
    assert f"({cost_us / shown['predicted_us']:.0%}) are operations that the device needs" in text
    assert f"channel shuffle as a transposition {cost_us:.4g} µs" in text


def test_pooling_beside_a_branch_copies_its_input_as_in_a_network():
    """The unit of ShuffleNetV1 with a stride of 2 reads its input twice."""
    runtime, unit = runtime_for(), load_space("shufflenet_v1", image_size=96)
    graph = unit.sample(0).graph
    kernels = [kernel for kernel in runtime.kernels(graph) if kernel.kind == "avg_pool"]
    contexts = [KernelInContext(kernel) for kernel in kernels]
    own = [
        context.own_rows(compile_file(file_of(context.graph), runtime.configuration).rows)
        for context in contexts
    ]
    whole = compile_file(file_of(graph), runtime.configuration).rows
    pools = [at for at, row in enumerate(whole) if row.kind == "AvgPool"]
    assert [len(rows) for rows in own] == [4, 4, 4]
    for at, rows in zip(pools, own, strict=True):
        pooling = whole[at + 1 - len(rows) : at + 1]
        assert [row.kind for row in pooling] == [row.kind for row in rows]
        expected = sum(row.cycles for row in pooling)
        assert sum(row.cycles for row in rows) == pytest.approx(expected, rel=0.03)


def test_concatenation_of_results_costs_nothing():
    """Vela lets the convolutions before it write to where it would copy them."""
    runtime = runtime_for()
    free = Kernel.parse("concat int8 16x7x7 48x7x7 -> 64x7x7")
    compiled = compile_file(file_of(KernelInContext(free).graph), runtime.configuration)
    assert not KernelInContext(free).own_rows(compiled.rows)
    assert not any(kernel.kind == "concat" for kernel in runtime.kernels(space().sample(0).graph))


def test_kernel_that_the_npu_cannot_run_fails_with_the_reason():
    """A window has at most 256 pixels a side."""
    kernel = Kernel.parse("max_pool int8 8x300x300 -> 8x1x1 k300 s300 p0 g1")
    with pytest.raises(MeasurementError, match="leaves MaxPool to the CPU"):
        runtime_for().timer.time_kernel(kernel)


def test_other_version_of_vela_is_refused(monkeypatch):
    monkeypatch.setattr("nas.runtimes.ethos_u.runtime.version", lambda package: "6.0.0")
    availability = EthosURuntime.availability()
    assert not availability.usable
    assert "6.0.0" in availability.reason
