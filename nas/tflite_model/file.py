"""Builds a TensorFlow Lite file from tensors and operators, with the schema of ai-edge-litert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from nas import __version__

SCHEMA_VERSION = 3
"""Version of the file format, the only one since 2017."""

FILE_IDENTIFIER = b"TFL3"

SIGNATURE = "serving_default"
"""Name of the model's only signature, the one that TensorFlow gives by default."""

_BUFFER_ALIGNMENT_BYTES = 16
"""Alignment of weights, which the schema demands and vector instructions need."""

_TENSOR_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.int32): schema.TensorType.INT32,
}


class Quantisation(NamedTuple):
    """What the integers of a tensor stand for: `scale * (integer - zero_point)`.

    Attributes:
        scales: one scale, or one for each index along `axis`.
        zero_point: the integer that stands for zero.
        axis: dimension of the tensor that the scales belong to.
    """

    scales: NDArray[np.float32]
    zero_point: int = 0
    axis: int = 0


class FileBuilder:
    """Collects the tensors and operators of a model, and packs them into a file.

    Tensors are named by their position in the file. Their shapes include the batch, which is 1 in
    the file.

    Args:
        any_batch: whether the batch can be resized.
    """

    def __init__(self, *, any_batch: bool = True) -> None:
        self._any_batch = any_batch
        self._tensors: list[schema.TensorT] = []
        self._buffers = [schema.BufferT()]  # Tensors without data refer to buffer 0.
        self._operators: list[schema.OperatorT] = []
        self._operator_codes: dict[tuple[int, int], int] = {}
        self._constants: dict[tuple[object, ...], int] = {}

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: type[np.generic],
        quantisation: Quantisation | None = None,
    ) -> int:
        """Add a tensor that an operator computes, `shape[0]` being the batch; return its position.

        Args:
            name: name of the tensor.
            shape: shape for a batch of one.
            dtype: type of its elements.
            quantisation: what its integers stand for; None for real numbers.
        """
        position = self._add_tensor(name, shape, np.dtype(dtype), quantisation)
        if self._any_batch:
            self._tensors[position].shapeSignature = [-1, *shape[1:]]
        return position

    def constant(
        self, name: str, array: NDArray[Any], quantisation: Quantisation | None = None
    ) -> int:
        """Add a tensor with values, and return its position."""
        position = self._add_tensor(name, array.shape, array.dtype, quantisation)
        self._tensors[position].buffer = self._add_buffer(array.tobytes())
        return position

    def shared_constant(self, array: NDArray[Any], quantisation: Quantisation | None = None) -> int:
        """Return the position of a constant named after its values; equal ones are one tensor."""
        scale = quantisation.scales.tobytes() if quantisation else b""
        zero_point = quantisation.zero_point if quantisation else 0
        key = (array.dtype.name, array.shape, array.tobytes(), scale, zero_point)
        if key not in self._constants:
            values = "_".join(map(str, array.flat))
            name = f"{array.dtype.name}_{values}"
            self._constants[key] = self.constant(name, array, quantisation)
        return self._constants[key]

    def operator(
        self,
        kind: str,
        inputs: Sequence[int],
        output: int,
        options: object | None = None,
        *,
        version: int = 1,
    ) -> None:
        """Add an operator.

        Args:
            kind: its name in `BuiltinOperator` of the schema.
            inputs: positions of the tensors that it reads.
            output: position of the tensor that it writes.
            options: its options in the schema's object interface, such as `Conv2DOptionsT`.
            version: version of the operator, which tells old runtimes what they lack.
        """
        code = getattr(schema.BuiltinOperator, kind), version
        operator = schema.OperatorT(
            opcodeIndex=self._operator_codes.setdefault(code, len(self._operator_codes)),
            inputs=list(inputs),
            outputs=[output],
        )
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
            operator.builtinOptions = options
        self._operators.append(operator)

    def rename(self, tensor: int, name: str) -> None:
        """Give a tensor another name."""
        self._tensors[tensor].name = name

    def data(
        self, inputs: Sequence[int], outputs: Sequence[int], metadata: Mapping[str, str]
    ) -> bytes:
        """Return the contents of the file.

        Args:
            inputs, outputs: positions of the tensors that the model reads and writes. The
                signature has them by their names.
            metadata: texts that travel in the file, by name.
        """
        subgraph = schema.SubGraphT(
            tensors=self._tensors,
            inputs=list(inputs),
            outputs=list(outputs),
            operators=self._operators,
            name="main",
        )
        signature = schema.SignatureDefT(
            inputs=self._tensor_map(inputs),
            outputs=self._tensor_map(outputs),
            signatureKey=SIGNATURE,
        )
        entries = [
            schema.MetadataT(name=name, buffer=self._add_buffer(text.encode()))
            for name, text in metadata.items()
        ]
        model = schema.ModelT(
            version=SCHEMA_VERSION,
            operatorCodes=[
                # The first 127 are also in the field of 2017.
                schema.OperatorCodeT(
                    deprecatedBuiltinCode=min(code, 127), builtinCode=code, version=version
                )
                for code, version in self._operator_codes
            ],
            subgraphs=[subgraph],
            description=f"nas {__version__}",
            buffers=self._buffers,
            metadata=entries,
            signatureDefs=[signature],
        )
        builder = _AligningBuilder()
        builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _add_tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: np.dtype[Any],
        quantisation: Quantisation | None,
    ) -> int:
        tensor = schema.TensorT(
            name=name, shape=list(shape), type=_TENSOR_TYPES[dtype], hasRank=True
        )
        if quantisation:
            tensor.quantization = schema.QuantizationParametersT(
                scale=quantisation.scales,
                zeroPoint=np.full(len(quantisation.scales), quantisation.zero_point, np.int64),
                quantizedDimension=quantisation.axis,
            )
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def _add_buffer(self, data: bytes) -> int:
        self._buffers.append(schema.BufferT(data=np.frombuffer(data, np.uint8)))
        return len(self._buffers) - 1

    def _tensor_map(self, tensors: Sequence[int]) -> list[schema.TensorMapT]:
        return [schema.TensorMapT(self._tensors[tensor].name, tensor) for tensor in tensors]


class _AligningBuilder(flatbuffers.Builder):
    """Aligns vectors of bytes, which the generated schema packs without their alignment."""

    def StartVector(self, elem_size: int, count: int, alignment: int) -> int:  # noqa: N802
        if elem_size == 1:
            alignment = _BUFFER_ALIGNMENT_BYTES
        return super().StartVector(elem_size, count, alignment)
