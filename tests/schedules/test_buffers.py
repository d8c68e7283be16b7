"""Buffers of activations, checked against the first and the last use of each tensor."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tvm
from tvm import relax

from nas.graph import Graph
from nas.runtimes.tvm import relax_network
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.schedules.buffers import share_buffers
from nas.schedules.templates import TO_KERNEL_CALLS, lower
from nas.space import load_space


def lowered_to_kernel_calls(runtime: TvmRuntime, graph: Graph, monkeypatch) -> tvm.IRModule:
    """Return the Relax module of a network, whose tensors are not allocated yet."""
    modules = []

    def lower_and_record(module, templates):
        modules.append(module)
        return lower(module, templates)

    monkeypatch.setattr(relax_network, "lower", lower_and_record)
    schedules = {k: runtime.timer.templates.candidates(k)[0] for k in runtime.kernels(graph)}
    runtime.compile(graph, schedules)
    passes = [*TO_KERNEL_CALLS, relax.transform.CanonicalizeBindings()]
    return tvm.transform.Sequential(passes)(modules[0])


@pytest.mark.parametrize("name", ["mobilenet_tiny", "shufflenet_tiny", "squeezenet_tiny"])
def test_tensors_share_as_few_buffers_as_possible(name: str, monkeypatch) -> None:
    space = load_space(name, image_size=32)
    rng = np.random.default_rng(0)
    runtime = TvmRuntime()
    for _ in range(3):
        graph = space.sample(rng, uniform_over="choices").graph
        module = lowered_to_kernel_calls(runtime, graph, monkeypatch)
        function = share_buffers(module)["main"]
        buffer_bytes, lives = {}, {}
        for at, binding in enumerate(function.body.blocks[0].bindings):
            operator, arguments = binding.value.op, binding.value.args
            if isinstance(operator, tvm.ir.GlobalVar):
                for each in arguments:
                    if each in lives:
                        lives[each][-1] = at
            elif operator.name == "relax.memory.alloc_storage":
                buffer_bytes[binding.var] = int(arguments[0].values[0])
            elif operator.name == "relax.memory.alloc_tensor":
                elements = int(arguments[2].values[0])
                assert 4 * elements <= buffer_bytes[arguments[0]]
                lives[binding.var] = [arguments[0], at, at]
            else:
                assert operator.name == "relax.builtin.alloc_tensor"
                assert binding.var.same_as(function.body.body), "only the output is not planned"
        assert len(lives) == len(runtime.kernels(graph)) - 1
        for buffer in buffer_bytes:
            own = sorted(life[1:] for life in lives.values() if life[0].same_as(buffer))
            assert all(end < start for (_, end), (start, _) in itertools.pairwise(own))
        alive = [sum(s <= at <= e for _, s, e in lives.values()) for _, at, _ in lives.values()]
        assert len(buffer_bytes) == max(alive) == graph.peak_buffers


def test_returned_tensors_have_buffers_of_their_own() -> None:
    """The second kernel writes the output, which must outlive the call."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((8,), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            first = builder.emit_te(lambda a: tvm.te.compute((8,), lambda i: a[i] + 1), x)
            second = builder.emit_te(lambda a: tvm.te.compute((8,), lambda i: a[i] * 2), first)
            output = builder.emit_output(relax.Tuple([first, second]))
        builder.emit_func_output(output)
    module = relax.transform.CallTIRRewrite()(relax.transform.ToNonDataflow()(builder.get()))
    assert "alloc_storage" not in share_buffers(module)["main"].script()
