"""The route from a quantised Relax module to Vela."""

import numpy as np
import pytest
import tvm
from ai_edge_litert.interpreter import Interpreter
from tvm import relax

from nas.graph import Channels, Graph, Op, Slot
from nas.runtimes.ethos_u import tvm_codegen
from nas.runtimes.ethos_u.configuration import Target, configuration
from nas.runtimes.ethos_u.networks import quantised_file, uncalibrated_network
from nas.runtimes.ethos_u.vela import compile_file

pytest.importorskip("ethosu")


def slot(name, outputs):
    return Slot(name, Channels.prefix(outputs, outputs))


BLOCK = Graph(
    (
        Op("input", (), (16, 14, 14)),
        Op("conv", (0,), (48, 14, 14), bias=True, slot=slot("expand", 48)),
        Op("relu6", (1,), (48, 14, 14)),
        Op("conv", (2,), (48, 14, 14), 3, 1, 1, 48, True, slot=slot("depthwise", 48)),
        Op("relu", (3,), (48, 14, 14)),
        Op("conv", (4,), (16, 14, 14), bias=True, slot=slot("project", 16)),
        Op("add", (5, 0), (16, 14, 14)),
        Op("conv", (6,), (8, 7, 7), 3, 2, 1, 1, True, slot=slot("next", 8)),
    )
)
"""An inverted residual and a convolution with a stride."""


@pytest.mark.parametrize("name", ["ethos-u55-128", "ethos-u65-256", "ethos-u85-256"])
def test_cycles_through_tvm_are_those_of_vela(name, tmp_path):
    network, target = uncalibrated_network(BLOCK), Target.parse(name)
    module = tvm_codegen.partition(tvm_codegen.relax_module(network))
    generator = tvm_codegen.Generator(target)
    compiled = generator.run(module)
    ((function, compilation),) = generator.compilations.items()
    assert compilation.cycles == compile_file(quantised_file(network), configuration(target)).cycles
    library = tmp_path / "network.so"
    relax.build(compiled, "llvm").export_library(str(library))
    content = library.read_bytes()
    assert compilation.model in content
    assert function.encode() in content


def test_marked_function_computes_what_the_module_does():
    """LiteRT runs the file that is written from the partition, TVM the whole module."""
    network = uncalibrated_network(BLOCK)
    module = tvm_codegen.relax_module(network)
    machine = relax.VirtualMachine(relax.build(module, "llvm"), tvm.cpu())
    partitioned = tvm_codegen.partition(module)
    (marked,) = [
        function
        for function in partitioned.functions.values()
        if "Codegen" in (function.attrs or {})
    ]
    data = quantised_file(tvm_codegen.network_of(marked))
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    image = np.random.default_rng(0).integers(-128, 128, (1, 16, 14, 14), np.int8)
    interpreter.set_tensor(source["index"], np.ascontiguousarray(image.transpose(0, 2, 3, 1)))
    interpreter.invoke()
    actual = interpreter.get_tensor(result["index"]).transpose(0, 3, 1, 2).astype(int)
    expected = machine["main"](tvm.runtime.tensor(image)).numpy().astype(int)
    assert len(np.unique(expected)) > 20
    assert np.abs(actual - expected).max() <= 1


def test_other_operations_stay_with_tvm():
    """A sigmoid between two convolutions makes two parts for the NPU."""
    builder = relax.BlockBuilder()
    network = uncalibrated_network(Graph(BLOCK.ops[:3]))
    scale, zero_point = relax.const(np.float32(0.02)), relax.const(np.int8(-128))
    first = tvm_codegen.relax_module(network)["main"]
    image = first.params[0]
    with builder.function("main", [image]):
        with builder.dataflow():
            (block,) = first.body.blocks
            for binding in block.bindings[:-1]:
                builder.emit_normalized(binding)
            real = builder.emit(relax.op.dequantize(block.bindings[-2].var, scale, zero_point))
            output = builder.emit_output(relax.op.sigmoid(real))
        builder.emit_func_output(output)
    partitioned = tvm_codegen.partition(builder.get())
    text = partitioned["main"].script()
    assert "sigmoid" in text
    assert text.count("ethos_u") == 1
