"""Networks that are one function, checked against lives of tensors and a virtual machine."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from nas.graph import Graph
from nas.kernels.fusion import Launch, launches
from nas.runtimes.tvm import relax_network
from nas.runtimes.tvm.network_function import (
    ALIGNMENT_BYTES,
    plan_workspace,
    repeated_kernel,
)
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space import load_space
from tests.latency.example_graphs import GRAPHS

UNIT = ALIGNMENT_BYTES // 4


def sampled(name: str) -> Graph:
    space = load_space(name, image_size=32)
    return space.sample(np.random.default_rng(0), uniform_over="choices").graph


def sequence_of(graph: Graph) -> list[Launch]:
    return launches(graph, fuse_expansions=True)


def test_network_of_one_kernel_has_a_workspace_that_can_be_allocated() -> None:
    sequence = sequence_of(sampled("mobilenet_tiny"))[:1]
    assert plan_workspace(sequence, UNIT) == ({}, 1)


@pytest.mark.parametrize("name", ["mobilenet_tiny", "shufflenet_tiny"])
def test_virtual_machine_that_calls_the_kernels_gives_equal_outputs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = sampled(name)
    runtime = TvmRuntime()
    schedules = {k: runtime.timer.templates.candidates(k)[0] for k in runtime.kernels(graph)}
    image = np.random.default_rng(1).standard_normal(graph.input_shape, np.float32)
    one_function = runtime.compile(graph, schedules)
    monkeypatch.setattr(relax_network, "_emit_network_function", relax_network._emit_launches)
    by_vm = runtime.compile(graph, schedules)
    assert one_function.launched == by_vm.launched == runtime.kernels(graph)
    np.testing.assert_array_equal(one_function.run(image), by_vm.run(image))


def test_repeated_kernel_computes_what_one_call_does() -> None:
    templates = TvmRuntime().timer.templates
    kernel = sequence_of(GRAPHS["classifier"]())[0].kernel
    schedule = templates.candidates(kernel)[0]
    function = templates.function(kernel, schedule, "main")
    rng = np.random.default_rng(0)
    shapes = [tuple(int(extent) for extent in each.shape) for each in function.params]
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    outputs = []
    for module, calls in (
        (tvm.IRModule({"main": function}), ()),
        (repeated_kernel(function), (0,)),
        (repeated_kernel(function), (3,)),
    ):
        tensors = [tvm.runtime.tensor(array) for array in arrays]
        tvm.tirx.build(module, templates.target, "tirx")["main"](*tensors, *calls)
        outputs.append(tensors[-1].numpy())
    once, never, thrice = outputs
    np.testing.assert_array_equal(once, thrice)
    np.testing.assert_array_equal(never, arrays[-1])
