"""ONNX models of one kernel, many times over; see `writer`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper

from nas.latency.kernel import Kernel
from nas.onnx_model import IR_VERSION, OPSET
from nas.runtimes.onnxruntime.float32.optimised import BLOCKED_DOMAIN
from nas.runtimes.onnxruntime.float32.writer import BlockedWriter
from nas.runtimes.onnxruntime.int8.writer import QuantisedWriter
from nas.runtimes.onnxruntime.writer import MICROSOFT_DOMAIN

_WRITERS = {"float32": BlockedWriter, "int8": QuantisedWriter}


class Repeated(NamedTuple):
    """A model of `copies` nodes of one kernel, and the shapes of its inputs by name."""

    model: onnx.ModelProto
    inputs: dict[str, tuple[int, ...]]
    copies: int


def repeat(kernel: Kernel, copies: int, weights: int, rng: np.random.Generator) -> Repeated:
    """A model that runs a kernel `copies` times on the same inputs.

    Args:
        copies: how often it runs. What all but the last make is read by none, so they share one
            buffer; an addition's other operand, which a network overwrites, comes from the copy
            before.
        weights: how many different sets of weights the copies take turns with.

    Raises MeasurementError for a kernel that ONNX Runtime does not have.
    """
    writer = _WRITERS[kernel.dtype](kernel, weights, rng)
    for _ in range(copies):
        writer.add()
    graph = helper.make_graph(
        writer.nodes,
        "repeated",
        [
            helper.make_tensor_value_info(name, writer.element_type(name), shape)
            for name, shape in writer.inputs.items()
        ],
        [helper.make_tensor_value_info(writer.last, writer.element_type(writer.last), None)],
        writer.initializers,
    )
    domains = [("", OPSET), (MICROSOFT_DOMAIN, 1), (BLOCKED_DOMAIN, 1)]
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*each) for each in domains],
        ir_version=IR_VERSION,
    )
    return Repeated(model, writer.inputs, copies)
