"""The canonical text of a kernel: its grammar, its operands and the steps of its epilogue.

    kernel    = kind [batchN] [dtype] operand... [expansion] -> CxHxW [window] [step...]
    expansion = expanded bias [activation...]
    operand   = CxHxW | CxHxW[start:stop]
    window    = kN sN pN gN                           kernel size, stride, padding, groups
    step      = bias | activation | shuffleN | add[:operand] | multiply[:operand]

`nas.kernels.kernel.Kernel` prints and parses these texts.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from nas.graph import ACTIVATIONS, POOLING_KINDS, Shape

WINDOW_KINDS = POOLING_KINDS | {"conv2d"}
"""Kinds with a window: their texts have kernel size, stride, padding and groups."""

DTYPES = ("float32", "int8")
"""Types of weights and activations; `int8` stands for signed and unsigned 8-bit integers."""

CONVERSION_KINDS = {"quantize", "dequantize", "view"}
"""Kinds that only convert a tensor: between float32 and int8, or between a feature map and a
vector."""

KINDS = WINDOW_KINDS | CONVERSION_KINDS | {"concat", "copy", "global_pool", "linear"}
"""All kinds of kernels that are no nodes of model files. `copy` copies one tensor and applies its
epilogue.
"""

MAX_ELEMENTS = 1 << 31
"""Largest number of elements of a tensor: what 32 bits index, far more than a device can time."""

SHUFFLE = re.compile(r"shuffle(\d+)")
"""An epilogue step: a channel shuffle of this many groups."""

_OPERAND = re.compile(r"(\d+)x(\d+)x(\d+)(?:\[(\d+):(\d+)\])?")
_BATCH = re.compile(r"batch(\d+)")
_WINDOW = re.compile(r"k(\d+) s(\d+) p(\d+) g(\d+)")


class Operand(NamedTuple):
    """A tensor that a kernel reads: the channels `start` to `stop` of a tensor of this shape."""

    shape: Shape
    start: int
    stop: int

    @classmethod
    def whole(cls, shape: Shape) -> Operand:
        """Return the operand that reads all channels of a tensor."""
        return cls(shape, 0, shape[0])

    @property
    def channels(self) -> int:
        """Number of channels that are read."""
        return self.stop - self.start

    @property
    def text(self) -> str:
        """`116x14x14`, or `116x14x14[58:116]` for a range of the channels."""
        size = "x".join(str(n) for n in self.shape)
        is_whole = self.start == 0 and self.stop == self.shape[0]
        return size if is_whole else f"{size}[{self.start}:{self.stop}]"

    @classmethod
    def parse(cls, text: str) -> Operand:
        """Return the operand with this text.

        Raises:
            ValueError: it is the text of no operand.
        """
        match = _OPERAND.fullmatch(text)
        if not match:
            raise ValueError(f"'{text}' is no shape like 116x14x14 or 116x14x14[58:116]")
        c, h, w, start, stop = match.groups()
        first, last = (0, int(c)) if start is None else (int(start), int(stop))
        if not 0 <= first < last <= int(c):
            raise ValueError(f"'{text}' is no range of channels")
        return cls((int(c), int(h), int(w)), first, last)


def epilogue_step(kind: str, operand: Operand, output: Shape) -> str:
    """Return the epilogue step that combines an operand with the result.

    Args:
        kind: `add` or `multiply`.
        operand: the operand.
        output: shape of the result.
    """
    is_default = operand == Operand.whole(_operand_shape(kind, output))
    return kind if is_default else f"{kind}:{operand.text}"


def step_operand(step: str, output: Shape) -> Operand | None:
    """Return the operand of an epilogue step; None for a step that has none.

    Args:
        step: the step.
        output: shape of the result.

    Raises:
        ValueError: the operand does not fit the result.
    """
    kind, colon, text = step.partition(":")
    if kind not in ("add", "multiply"):
        return None
    shape = _operand_shape(kind, output)
    operand = Operand.parse(text) if colon else Operand.whole(shape)
    if (operand.channels, *operand.shape[1:]) != shape:
        raise ValueError(f"'{step}' does not read {'x'.join(str(n) for n in shape)}")
    return operand


def _operand_shape(kind: str, output: Shape) -> Shape:
    """Return what a step reads: an addition the result's shape, a gate one value per channel."""
    return output if kind == "add" else (output[0], 1, 1)


def parse_fields(text: str) -> dict[str, Any]:
    """Return the fields of `Kernel` that a text gives, by name.

    The result may still describe an impossible kernel, and the text may not be canonical.

    Raises:
        ValueError: the text does not follow the grammar.
    """
    head, arrow, tail = text.partition(" -> ")
    kind, *tokens = head.split(" ")
    if not arrow or kind not in KINDS:
        raise ValueError(f"it should start with one of {', '.join(sorted(KINDS))}")
    batch = _BATCH.fullmatch(tokens[0]) if tokens else None
    tokens = tokens[batch is not None :]
    dtype = tokens.pop(0) if tokens and tokens[0] in DTYPES else "float32"
    tokens, expansion = _split_expansion(tokens)
    output, _, rest = tail.partition(" ")
    window = (1, 1, 0, 1)
    if kind in WINDOW_KINDS:
        match = _WINDOW.match(rest)
        if not match:
            raise ValueError("it should have a window like 'k3 s1 p1 g1'")
        window = tuple(int(n) for n in match.groups())  # type: ignore[assignment]
        rest = rest[match.end() :].strip()
    kernel, stride, padding, groups = window
    return {
        "kind": kind,
        "inputs": tuple(map(Operand.parse, tokens)),
        "output": Operand.parse(output).shape,
        "kernel": kernel,
        "stride": stride,
        "padding": padding,
        "groups": groups,
        "epilogue": tuple(rest.split()),
        "dtype": dtype,
        "expansion": expansion,
        "batch": int(batch[1]) if batch else 1,
    }


def _split_expansion(tokens: list[str]) -> tuple[list[str], tuple[str, ...] | None]:
    """Split the tokens before the arrow into operands and the steps of an expansion."""
    if "expanded" not in tokens:
        return tokens, None
    position = tokens.index("expanded")
    steps = tuple(tokens[position + 1 :])
    if steps[:1] != ("bias",) or not ACTIVATIONS.issuperset(steps[1:]):
        raise ValueError("the steps of an expansion are not a bias and activations")
    return tokens[:position], steps
