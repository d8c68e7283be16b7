"""Memory that an int8 network needs in TensorFlow Lite Micro, on a microcontroller of 32 bits.

TensorFlow Lite Micro (TFLM) reads a file in flash, and keeps everything else in one block of SRAM,
the tensor arena (David et al. 2021, "TensorFlow Lite Micro: Embedded Machine Learning on TinyML
Systems"). At one end of the arena are the activations, placed by TFLM's greedy planner; at the
other are the structures that stay: of tensors, operators, and output channels. Nothing here runs
TFLM. Tests compare the arena with that of its own interpreter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np

from nas.errors import ExportError, MeasurementError
from nas.figures import Figure
from nas.graph import Graph
from nas.latency.networks import random_weights
from nas.quantisation.made_up import made_up_network
from nas.quantisation.network import QuantisedNetwork
from nas.runtimes.memory_plan import Buffer, place

FIGURES = (
    Figure(
        "arena_kib",
        "tensor arena, KiB",
        note="The tensor arena is the SRAM that TensorFlow Lite Micro takes on a microcontroller. "
        "Latencies are those of the device that was timed, not of the microcontroller.",
    ),
    Figure("flash_kib", "flash, KiB"),
)
"""SRAM of the tensor arena, and flash of the file. The program's SRAM and code are in neither."""

_ALIGNMENT_BYTES = 16
"""Alignment of an activation."""

_WORD_BYTES = 4
"""Size of a pointer of a microcontroller."""

_TENSOR_WORDS, _NODE_WORDS = 3, 8
"""Pointers, and numbers of their size, of the structures that TFLM keeps of each tensor
(`TfLiteEvalTensor`) and each operator (`NodeAndRegistration`)."""

_CHANNEL_BYTES = 8
"""Multiplier and shift of each output channel of a weighted operator."""

_OPERATOR_BYTES = {
    "ADD": 72,
    "AVERAGE_POOL_2D": 72,
    "CONCATENATION": 88,
    "CONV_2D": 108,
    "DEPTHWISE_CONV_2D": 108,
    "HARD_SWISH": 32,
    "MAX_POOL_2D": 72,
    "MEAN": 74,
    "MUL": 52,
    "PAD": 64,
    "PADV2": 64,
    "QUANTIZE": 32,
    "RELU": 32,
    "RELU6": 16,
    "RESHAPE": 36,
    "STRIDED_SLICE": 120,
    "TRANSPOSE": 0,
}
"""Parameters and prepared constants of an operator, without those of output channels: what one more
operator takes in TFLM's interpreter on a machine of 64 bits. With pointers of 32 bits, and without
what only compressed weights need, a convolution takes about 24 bytes less."""

_WEIGHTED_OPERATORS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})

_INTERPRETER_BYTES = 736
"""The allocators, the planner, and the tensors of input and output."""


@dataclass(frozen=True)
class MicroMemory:
    """What a file needs in TFLM.

    Args:
        file_bytes: size of the file, which stays in flash.
        activation_bytes: part of the tensor arena that activations take.
        kept_bytes: part of it for what stays of tensors, operators and output channels.
        operators: names of the operators that the program must register.
    """

    file_bytes: int
    activation_bytes: int
    kept_bytes: int
    operators: tuple[str, ...]

    @property
    def arena_bytes(self) -> int:
        """Smallest size of the tensor arena."""
        return self.activation_bytes + self.kept_bytes

    @property
    def figures(self) -> dict[str, float]:
        """The figures of `FIGURES`."""
        return {"arena_kib": self.arena_bytes / 1024, "flash_kib": self.file_bytes / 1024}

    def to_json(self) -> dict[str, Any]:
        """Return what a program on a microcontroller needs to know."""
        return {"arena_bytes": self.arena_bytes, **asdict(self)}


def micro_file(network: QuantisedNetwork) -> bytes:
    """Return the file of a network for TFLM, see `nas.tflite_model.quantised_model`."""
    from nas import tflite_model  # Imports the schema of ai-edge-litert.

    return tflite_model.quantised_model(network, for_micro=True)


def network_memory(graph: Graph) -> MicroMemory:
    """Return what a network needs, from a file with made-up weights and scales.

    Raises:
        MeasurementError: TensorFlow Lite has no counterpart of an op.
    """
    weights = random_weights(graph, np.random.default_rng(0))
    try:
        data = micro_file(made_up_network(graph.folded, weights))
    except ExportError as error:
        raise MeasurementError(error.message) from error
    return file_memory(data)


def file_memory(data: bytes, word_bytes: int = _WORD_BYTES) -> MicroMemory:
    """Return what a file of `micro_file` needs.

    Args:
        data: contents of the file.
        word_bytes: size of a pointer.

    Raises:
        MeasurementError: the file has an operator whose memory is not known.
    """
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    model = schema.Model.GetRootAs(data)
    codes = [model.OperatorCodes(n).BuiltinCode() for n in range(model.OperatorCodesLength())]
    subgraph = schema.SubGraphT.InitFromObj(model.Subgraphs(0))
    kept = _INTERPRETER_BYTES + word_bytes * (
        _TENSOR_WORDS * len(subgraph.tensors) + _NODE_WORDS * len(subgraph.operators)
    )
    first = {int(tensor): 0 for tensor in subgraph.inputs}
    last = dict(first)
    used: dict[str, None] = {}
    for at, operator in enumerate(subgraph.operators, start=1):
        name = names[codes[operator.opcodeIndex]]
        if name not in _OPERATOR_BYTES:
            raise MeasurementError(f"It is not known how much memory {name} takes in TFLM.")
        used[name] = None
        kept += _OPERATOR_BYTES[name] + _CHANNEL_BYTES * _channels(name, operator, subgraph)
        first |= {int(tensor): at for tensor in operator.outputs}
        last |= {int(tensor): at for tensor in (*operator.inputs, *operator.outputs)}
    last |= {int(tensor): len(subgraph.operators) for tensor in subgraph.outputs}
    planned = planned_bytes(
        Buffer(_size(subgraph.tensors[tensor]), created, last[tensor])
        for tensor, created in sorted(first.items())
    )
    return MicroMemory(len(data), planned, kept, tuple(used))


def planned_bytes(buffers: Iterable[Buffer]) -> int:
    """Return the memory that TFLM's planner takes for activations (`GreedyMemoryPlanner`).

    Each buffer, the largest first, goes to the lowest gap between those that are placed and needed
    at the same time. Of equal ones, the last goes first.
    """
    ordered = sorted(enumerate(buffers), key=lambda each: (each[1].size, each[0]), reverse=True)
    placed = [buffer for _, buffer in ordered]
    offsets = place(placed)
    return max(offset + buffer.size for offset, buffer in zip(offsets, placed, strict=True))


def _channels(name: str, operator: Any, subgraph: Any) -> int:
    """Return the number of an operator's output channels that have scales of their own."""
    if name not in _WEIGHTED_OPERATORS:
        return 0
    return len(subgraph.tensors[operator.inputs[1]].quantization.scale)


def _size(tensor: Any) -> int:
    """Return the size of an int8 tensor, aligned."""
    return _ALIGNMENT_BYTES * -(-prod(map(int, tensor.shape)) // _ALIGNMENT_BYTES)
