"""Memory in TensorFlow Lite Micro, compared with that of its own interpreter."""

import os
import re
import tempfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

import nas
from nas import tflite_model
from nas.latency.networks import random_weights
from nas.quantisation.made_up import quantised_network
from nas.runtimes.litert.micro import file_memory, micro_file, network_memory
from nas.runtimes.litert.runtime import LiteRt

SPACES = ["mobilenet", "mobilenet_v3", "shufflenet", "shufflenet_v1", "squeezenet"]


def random_network(space, seed, image_size=32):
    """Return a graph, and its int8 version with the ranges of random images."""
    graph = nas.load_space(space, image_size=image_size).sample(seed=seed).graph
    weights = random_weights(graph.folded, np.random.default_rng(seed))
    return graph, quantised_network(graph.folded, weights)


@pytest.mark.parametrize("space", ["mobilenet_v3", "shufflenet_v1"])
def test_memory_does_not_depend_on_weights_and_scales(space):
    graph, quantised = random_network(space, seed=1)
    memory = network_memory(graph)
    real = file_memory(micro_file(quantised))
    # Equal constants of different scales are tensors of their own.
    assert memory.kept_bytes == pytest.approx(real.kept_bytes, abs=64)
    assert memory.file_bytes == pytest.approx(real.file_bytes, abs=1024)
    assert memory.activation_bytes == real.activation_bytes
    assert memory.operators == real.operators


def test_only_convolutions_have_a_scale_for_each_channel():
    """Older copies of TFLM read the first scale alone of other operators, whatever the version."""
    graph, quantised = random_network("mobilenet_tiny", seed=1)
    data = micro_file(quantised)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    (subgraph,) = model.subgraphs
    scales = {
        at: 0 if tensor.quantization is None else np.size(tensor.quantization.scale)
        for at, tensor in enumerate(subgraph.tensors)
    }
    readers = {
        model.operatorCodes[operator.opcodeIndex].builtinCode
        for operator in subgraph.operators
        if any(scales[tensor] > 1 for tensor in operator.inputs)
    }
    kinds = schema.BuiltinOperator
    assert readers == {kinds.CONV_2D, kinds.DEPTHWISE_CONV_2D}
    # It computes what the file for other devices computes.
    image = np.random.default_rng(0).integers(-128, 128, (1, *graph.input_shape[1:], 3), np.int8)
    other = tflite_model.quantised_model(quantised, for_accelerator=True)
    difference = litert_output(data, image).astype(int) - litert_output(other, image)
    assert np.abs(difference).max() <= 1


def test_only_quantised_networks_have_figures():
    graph, _ = random_network("squeezenet", seed=0)
    figures = LiteRt(dtype="int8").network_figures(graph)
    declared = {figure.name for figure in LiteRt(dtype="int8").figures}
    assert set(figures) == declared == {"arena_kib", "flash_kib"}
    assert figures["flash_kib"] > graph.params / 1024
    assert not LiteRt().figures
    assert not LiteRt().network_figures(graph)


@pytest.mark.parametrize(
    ("space", "image_size"), [*((space, 32) for space in SPACES), ("shufflenet", 96)]
)
def test_arena_is_that_of_the_interpreter(space, image_size):
    """Activations take exactly what they take there; the rest is within half a percent."""
    runtime = pytest.importorskip("tflite_micro.python.tflite_micro.runtime")
    graph, quantised = random_network(space, 2, image_size)
    data = micro_file(quantised)
    memory = file_memory(data, word_bytes=8)
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=1 << 25)
    image = np.random.default_rng(0).integers(-128, 128, (1, *graph.input_shape[1:], 3), np.int8)
    interpreter.set_input(image, 0)
    interpreter.invoke()
    allocations = printed_allocations(interpreter)
    assert memory.activation_bytes == allocations["head"]
    assert memory.kept_bytes == pytest.approx(allocations["tail"], rel=0.005)
    assert memory.arena_bytes == pytest.approx(allocations["total"], rel=0.003)
    with pytest.raises(RuntimeError):
        runtime.Interpreter.from_bytes(data, arena_size=int(0.99 * memory.arena_bytes))
    runtime.Interpreter.from_bytes(data, arena_size=int(1.01 * memory.arena_bytes))
    # Its kernels and LiteRT's round a value in the middle of two integers to either.
    outputs = interpreter.get_output(0)[0], litert_output(data, image)[0]
    assert np.corrcoef(*outputs)[0, 1] > 0.97


def printed_allocations(interpreter):
    """Return the bytes of the arena and its two parts, which the interpreter prints."""
    with tempfile.TemporaryFile() as printed:
        stderr = os.dup(2)
        os.dup2(printed.fileno(), 2)
        try:
            interpreter.print_allocations()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        printed.seek(0)
        text = printed.read().decode()
    return {name: int(size) for name, size in re.findall(r"Arena allocation (\w+) (\d+)", text)}


def litert_output(data, image):
    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
