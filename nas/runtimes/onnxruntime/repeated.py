"""ONNX models that run one kernel many times, in the nodes to which ONNX Runtime optimises it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from nas.kernels.kernel import Kernel
from nas.onnx_model import IR_VERSION, OPSET
from nas.runtimes.onnxruntime.float32.writer import BLOCKED_DOMAIN, BlockedWriter
from nas.runtimes.onnxruntime.int8.writer import QuantisedWriter
from nas.runtimes.onnxruntime.writer import MICROSOFT_DOMAIN

_WRITERS = {"float32": BlockedWriter, "int8": QuantisedWriter}


def repeat_kernel(
    kernel: Kernel, copies: int, weight_sets: int
) -> tuple[onnx.ModelProto, dict[str, tuple[int, ...]]]:
    """Write a model that runs a kernel many times on the same inputs.

    Nothing reads the outputs of all copies but the last, so they share one buffer. Only an addition
    reads the output of the copy before, because a network overwrites that operand, too.

    Args:
        kernel: kernel to repeat.
        copies: number of copies.
        weight_sets: number of different sets of weights that the copies use in rotation.

    Returns:
        The model, and the shapes of its inputs by name.

    Raises:
        MeasurementError: ONNX Runtime does not have the kernel.
    """
    writer = _WRITERS[kernel.dtype](kernel, weight_sets, np.random.default_rng(0))
    for _ in range(copies):
        writer.add_copy()
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
    return model, writer.inputs
