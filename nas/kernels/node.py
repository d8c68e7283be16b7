"""`Node`: a node of a model that a runtime has optimised, as a kernel with a canonical text.

Runtimes that run model files fuse and arrange nodes by rules of their own. A node of what they made
of a file is what they launch, so its text is the key of a latency table, and has everything that is
needed to write the node again:

    node com.microsoft.FusedConv f32[1,16,14,14] f32*[24,16,1,1] f32*[24] -> f32[1,24,14,14]
        activation="Relu" kernel_shape=[1,1]

    node      = "node" domain.op operand... "->" tensor... attribute...        in one line
    operand   = tensor | constant | "-"                                   "-" for one left out
    tensor    = dtype[size,...]                                        computed at run time
    constant  = dtype*[size,...] | dtype[size,...]=value,...       of any values | of these values
    attribute = name=JSON                                                    sorted by name
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, NamedTuple

from pydantic import ConfigDict, TypeAdapter

from nas.files.documents import shortened
from nas.graph import Shape
from nas.kernels.kernel_text import MAX_ELEMENTS

ITEM_BYTES: Mapping[str, int] = {
    "f32": 4,
    "f16": 2,
    "f64": 8,
    "i64": 8,
    "i32": 4,
    "i16": 2,
    "i8": 1,
    "u8": 1,
    "bool": 1,
}
"""Bytes of a number of each type of tensors."""

MAX_CHARACTERS = 1 << 14
"""Length of the longest text of a node. Those of networks have some hundred characters."""

NODE = "node"
"""First word of the text of a node."""

LAYOUT_KIND = "layout"
"""Kind of a node that only moves the numbers of a tensor."""

_KINDS: Mapping[str, str] = {
    "AveragePool": "avg_pool",
    "Conv": "conv2d",
    "DequantizeLinear": "dequantize",
    "Flatten": "view",
    "FusedConv": "conv2d",
    "FusedGemm": "linear",
    "Gemm": "linear",
    "GlobalAveragePool": "global_pool",
    "MatMul": "linear",
    "MaxPool": "max_pool",
    "QuantizeLinear": "quantize",
    "ReorderInput": LAYOUT_KIND,
    "ReorderOutput": LAYOUT_KIND,
    "Reshape": "view",
    "Transpose": LAYOUT_KIND,
}
"""Kinds of `Kernel` by the op, without what int8 and layouts put before its name."""

_PREFIXES = re.compile(r"^(QLinear|Q(?=[A-Z])|Nhwc)")

Attribute = int | float | str | list[int] | list[float] | list[str]

_ATTRIBUTE: Final = TypeAdapter[Attribute](
    Attribute, config=ConfigDict(strict=True, allow_inf_nan=False)
)

_OP = re.compile(r"[A-Za-z][\w.]*", re.ASCII)

_TENSOR = re.compile(r"([a-z]+\d*)(\*?)\[([\d,]*)\](?:=(-?\d+(?:,-?\d+)*))?")


class Tensor(NamedTuple):
    """What a node reads or makes.

    Attributes:
        dtype: type of the numbers, one of `ITEM_BYTES`.
        shape: sizes, with the images of the batch.
        is_constant: whether it is a constant of the model.
        values: the numbers of a constant that the node's work depends on, such as a shape.
    """

    dtype: str
    shape: tuple[int, ...]
    is_constant: bool = False
    values: tuple[int, ...] | None = None

    @property
    def text(self) -> str:
        """See the grammar of this module."""
        star = "*" if self.is_constant and self.values is None else ""
        text = f"{self.dtype}{star}[{','.join(map(str, self.shape))}]"
        return text if self.values is None else f"{text}={','.join(map(str, self.values))}"

    @classmethod
    def parse(cls, text: str) -> Tensor:
        """Return the tensor with this text. Raises ValueError if there is none."""
        match = _TENSOR.fullmatch(text)
        if not match or match[1] not in ITEM_BYTES:
            raise ValueError(f"{shortened(text)} is no tensor like f32[1,16,14,14]")
        dtype, star, sizes, numbers = match.groups()
        shape = tuple(map(int, sizes.split(","))) if sizes else ()
        values = None if numbers is None else tuple(map(int, numbers.split(",")))
        if not 0 < math.prod(shape) <= MAX_ELEMENTS:
            raise ValueError(f"{shortened(text)} has no elements, or too many")
        if values is not None and (star or len(values) != math.prod(shape)):
            raise ValueError(f"{shortened(text)} has not as many values as its shape says")
        return cls(dtype, shape, bool(star) or values is not None, values)

    @property
    def size_bytes(self) -> int:
        """Bytes of all its numbers."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class Node:
    """A node, whatever its tensors are called.

    Args:
        op: name of the op; that of a domain other than ONNX's own follows the domain and a point.
        inputs: what it reads; None for an input that is left out.
        outputs: what it makes.
        attributes: its settings: numbers, texts, or lists of numbers.
    """

    op: str
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    @cached_property
    def text(self) -> str:
        """The canonical text, which `parse` reads."""
        parts = [NODE, self.op, *(each.text if each else "-" for each in self.inputs), "->"]
        parts += [each.text for each in self.outputs]
        for name in sorted(self.attributes):
            value = json.dumps(self.attributes[name], separators=(",", ":"))
            parts.append(f"{name}={value}".replace(" ", "\\u0020"))
        return " ".join(parts)

    @classmethod
    def parse(cls, text: str) -> Node:
        """Return the node with this text.

        Raises:
            ValueError: it is the text of no node, or not the canonical one.
        """
        if len(text) > MAX_CHARACTERS:
            raise ValueError(f"it has more than {MAX_CHARACTERS} characters")
        start, _, rest = text.partition(" ")
        head, arrow, tail = rest.partition(" -> ")
        op, *operands = head.split(" ")
        if start != NODE or not arrow or not _OP.fullmatch(op):
            raise ValueError("it should be like 'node Relu f32[1,8] -> f32[1,8]'")
        tokens = tail.split(" ")
        outputs = [each for each in tokens if _TENSOR.fullmatch(each)]
        attributes = {}
        for token in tokens[len(outputs) :]:
            name, _, value = token.partition("=")
            attributes[name] = _ATTRIBUTE.validate_json(value)
        inputs = tuple(None if each == "-" else Tensor.parse(each) for each in operands)
        node = cls(op, inputs, tuple(map(Tensor.parse, outputs)), attributes)
        if node.text != text or not outputs:
            raise ValueError(f"its canonical text is {shortened(node.text)}")
        return node

    @property
    def constants(self) -> Iterator[Tensor]:
        """The constants of any values: weights, biases and scales."""
        return (each for each in self.inputs if each and each.is_constant and each.values is None)

    @cached_property
    def weight(self) -> Tensor | None:
        """The weights of a convolution or a matrix product; None without any."""
        if self.kind not in ("conv2d", "linear"):
            return None
        return next((each for each in self.constants if len(each.shape) > 1), None)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants, as the model has them."""
        return sum(each.size_bytes for each in self.constants)

    @property
    def macs(self) -> int:
        """Multiply-accumulates, those with the zeros of padded channels among them."""
        if self.weight is None:
            return 0
        is_transposed = self.kind == "conv2d" or self.attributes.get("transB")
        outputs = self.weight.shape[0 if is_transposed else -1]
        return math.prod(self.outputs[0].shape) * math.prod(self.weight.shape) // outputs

    @property
    def kind(self) -> str:
        """Kind of kernel: one of `nas.kernels.kernel_text.KINDS`, or the name of the op."""
        name = _PREFIXES.sub("", self.op.rpartition(".")[2])
        return _KINDS.get(name) or _snake_case(name)

    @property
    def operands(self) -> list[Tensor]:
        """What it reads that is computed at run time."""
        return [each for each in self.inputs if each and not each.is_constant]

    @property
    def fused_steps(self) -> tuple[str, ...]:
        """What is fused into a convolution, in words of `nas.kernels.kernel.Kernel`."""
        if self.kind != "conv2d":
            return ()
        activation = self.attributes.get("activation")
        steps = [_snake_case(str(activation))] if activation else []
        return (*steps, *["add"] * (len(self.operands) > 1))

    def first_number(self, name: str, default: int) -> int:
        """Return an attribute, or the first number of it."""
        value = self.attributes.get(name, default)
        first = value[0] if isinstance(value, list) and value else value
        return first if isinstance(first, int) else default

    def image_shape(self, tensor: Tensor) -> Shape:
        """Return the shape of a tensor for one image, channels first."""
        sizes = tensor.shape[1:]
        is_last = self.attributes.get("channels_last") or self.attributes.get("axis") == len(sizes)
        if len(sizes) == 3 and (is_last or ".Nhwc" in self.op):
            sizes = (sizes[2], *sizes[:2])
        if len(sizes) < 3:
            return (*sizes, *(1,) * (3 - len(sizes)))  # type: ignore[return-value]
        return (math.prod(sizes[:-2]), *sizes[-2:])  # type: ignore[return-value]


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
