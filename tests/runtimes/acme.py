"""A stand-in for the Python package of a vendor, whose accelerator counts seconds by itself.

It compiles and runs models in ONNX Runtime. Its seconds follow from the shapes of the nodes, so
that tests know those of each kernel: an activation is a part of the node before, and reshaping is
free.
"""

import math

import numpy as np
import onnx
import onnxruntime

CALL_S, NODE_S, SECONDS_PER_PRODUCT, SECONDS_PER_ELEMENT = 2e-5, 1e-6, 1e-11, 1e-11

WATTS = 3.0

FREE = {"Relu", "Clip", "HardSwish", "HardSigmoid", "Flatten", "Reshape"}


class Program:
    """A compiled model."""

    def __init__(self, onnx_bytes):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(onnx_bytes, options, providers=providers)
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(onnx_bytes))
        graph = model.graph
        shapes = {each.name: tuple(each.dims) for each in graph.initializer}
        for each in (*graph.input, *graph.value_info, *graph.output):
            shapes[each.name] = tuple(size.dim_value for size in each.type.tensor_type.shape.dim)
        self.seconds = CALL_S + sum(
            node_seconds(shapes, node) for node in graph.node if node.op_type not in FREE
        )


def node_seconds(shapes, node):
    """Return the seconds of a node."""
    elements = math.prod(shapes[node.output[0]])
    if node.op_type in ("Conv", "Gemm"):
        products = math.prod(shapes[node.input[1]][1:]) * elements
        return NODE_S + SECONDS_PER_PRODUCT * products
    return NODE_S + SECONDS_PER_ELEMENT * elements


def device_name():
    return "Acme A1"


def compile(onnx_bytes):  # noqa: A001
    return Program(onnx_bytes)


def profile(program):
    return [program.seconds] * 10


def energy_uj(program):
    return WATTS * 1e6 * program.seconds


def run(program, image):
    (each,) = program.session.get_inputs()
    assert image.shape == tuple(each.shape), "it compiles for one shape"
    return program.session.run(None, {each.name: np.ascontiguousarray(image)})[0]
