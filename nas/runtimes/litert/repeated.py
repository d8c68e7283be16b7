"""TensorFlow Lite files that repeat one kernel, written like whole networks.

XNNPACK leaves out what nothing reads. So each copy reads the output of the copy before if it has
the right shape, as the kernels of a network do, and otherwise one element of its output is an
output of the file.
"""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from nas.errors import MeasurementError
from nas.graph import Graph, Op
from nas.kernels.fusion import KERNEL_KINDS, add_kernel
from nas.kernels.kernel import Kernel
from nas.kernels.kernel_text import Operand
from nas.latency.networks import random_weights
from nas.quantisation.made_up import ACTIVATION, made_up_network
from nas.tflite_model.file import FileBuilder, Quantisation
from nas.tflite_model.numbers import Float32, Int8
from nas.tflite_model.writer import Writer

_OPERATORS = {"quantize": "QUANTIZE", "dequantize": "DEQUANTIZE", "view": "RESHAPE"}
"""Operators of the kernels that only networks with all their ends have."""


_OTHER_RUNTIME = "It is one of another runtime; build a table of LiteRT's own."

_CLIPPING_STEPS = frozenset({"relu", "relu6", "hard_sigmoid"})
"""Activations of which XNNPACK makes one of several in a row."""


def forms_chain(kernel: Kernel) -> bool:
    """Return whether a copy of a kernel can read the output of the copy before."""
    is_clipping = kernel.kind == "copy" and not _CLIPPING_STEPS.isdisjoint(kernel.epilogue[:1])
    fits = kernel.inputs[0] == Operand.whole(kernel.output)
    return fits and kernel.kind not in _OPERATORS and not is_clipping


def repeat_kernel(kernel: Kernel, copies: int, rng: np.random.Generator) -> bytes:
    """Return a file that runs a kernel many times, each time with weights of its own.

    The inputs of an int8 file are int8.

    Args:
        kernel: kernel to repeat, for any batch size.
        copies: number of copies.
        rng: generator of the weights.

    Raises:
        MeasurementError: LiteRT does not have the kernel.
    """
    if kernel.kind in _OPERATORS:
        return _repeat_conversion(kernel, copies)
    if kernel.is_expanded or kernel.node:
        raise MeasurementError(f"LiteRT has no kernel '{kernel}'.", remedy=_OTHER_RUNTIME)
    graph = repeated_graph(kernel, copies)
    weights = random_weights(graph, rng)
    if kernel.dtype == "int8":
        return _PartWriter(graph, Int8(made_up_network(graph, weights))).data({})
    return _PartWriter(graph, Float32(graph, weights)).data({})


def tiny_operators(count: int, dtype: str) -> bytes:
    """Return a file of `count` operators, each of which copies one element of the input."""
    file = FileBuilder()
    numbers, quantisation = _numbers(dtype)
    source = file.tensor("input", (1, 1, 1, 16), numbers, quantisation)
    ends = [
        _copy_element(file, source, 4, numbers, quantisation, f"{index}") for index in range(count)
    ]
    return file.data([source], ends, {})


def repeated_graph(kernel: Kernel, copies: int) -> Graph:
    """Return a graph of many copies of a kernel, whose inputs are the operands of the kernel.

    Raises:
        MeasurementError: LiteRT does not have the kernel.
    """
    operand = kernel.inputs[0]
    is_slice = kernel.kind == "copy" and operand.channels < operand.shape[0]
    has_ops = kernel.kind in KERNEL_KINDS.values() or is_slice
    if not has_ops and not (kernel.kind == "copy" and kernel.epilogue):
        raise MeasurementError(f"LiteRT has no kernel '{kernel}'.", remedy=_OTHER_RUNTIME)
    ops = [Op("input", (), operand.shape) for operand in kernel.operands]
    sources = list(range(len(ops)))
    for index in range(copies):
        own = list(sources)
        if is_slice:
            ops.append(Op("slice", (sources[0],), kernel.output, start=operand.start))
            own[0] = len(ops) - 1
        result = add_kernel(ops, kernel, own, f"copy{index}")
        if forms_chain(kernel):
            sources[0] = result
    return Graph(tuple(ops))


class _PartWriter(Writer):
    """Writes a part of a network, with one element of every tensor that nothing reads as output."""

    def _write_input(self, at: int) -> int:
        c, h, w = self._graph.ops[at].shape
        quantisation = self._numbers.quantisation(at)
        x = self._file.tensor(f"input_{at}", (1, h, w, c), self._numbers.dtype, quantisation)
        self._tensors[at] = x
        return x

    def _write(self, at: int, op: Op) -> None:
        super()._write(at, op)
        fused = self._fused_activation(at)
        end = at if fused is None else fused
        if not self._graph.consumers[end]:
            quantisation = self._numbers.quantisation(end)
            dtype = self._numbers.dtype
            element = _copy_element(
                self._file, self._tensors[end], 4, dtype, quantisation, f"{end}"
            )
            self._model_outputs.append(element)

    def _write_outputs(self) -> list[int]:
        return self._model_outputs

    def _is_non_negative(self, at: int) -> bool:
        # The blocks that pool a tensor apply a ReLU before.
        return self._graph.ops[at].kind == "input" or super()._is_non_negative(at)


def _repeat_conversion(kernel: Kernel, copies: int) -> bytes:
    """Return a file that repeats a kernel of the ends of a network."""
    file = FileBuilder()
    c, h, w = kernel.output
    real, own = _numbers("float32"), _numbers(kernel.dtype)
    before = real if kernel.kind == "quantize" else own
    after = real if kernel.kind == "dequantize" else own
    source = file.tensor("input", (1, h, w, c), *before)
    inputs = [source]
    shape: tuple[int, ...] = (1, h, w, c)
    if kernel.kind == "view":
        inputs.append(file.shared_constant(np.array([-1, c], np.int32)))
        shape = (1, c)
    ends = []
    for index in range(copies):
        result = file.tensor(f"copy{index}", shape, *after)
        version = 2 if kernel.kind == "dequantize" else 1
        file.operator(_OPERATORS[kernel.kind], inputs, result, version=version)
        ends.append(_copy_element(file, result, len(shape), *after, f"{index}"))
    return file.data([source], ends, {})


def _numbers(dtype: str) -> tuple[type[np.generic], Quantisation | None]:
    """Return the type of a tensor of this dtype, and what its integers stand for."""
    if dtype == "float32":
        return np.float32, None
    return np.int8, Quantisation(np.array([ACTIVATION.scale], np.float32), ACTIVATION.zero_point)


def _copy_element(
    file: FileBuilder,
    tensor: int,
    rank: int,
    dtype: type[np.generic],
    quantisation: Quantisation | None,
    name: str,
) -> int:
    """Add an operator that copies the first element of a tensor for each image; return the copy."""
    begin, end, stride = (
        file.shared_constant(np.full(rank, value, np.int32)) for value in (0, 1, 1)
    )
    element = file.tensor(f"element_{name}", (1,) * rank, dtype, quantisation)
    # The masks say that it takes all images of the batch.
    options = schema.StridedSliceOptionsT(beginMask=1, endMask=1)
    version = 1 if quantisation is None else 2
    file.operator("STRIDED_SLICE", [tensor, begin, end, stride], element, options, version=version)
    return element
