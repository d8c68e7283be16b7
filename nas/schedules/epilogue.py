"""The element-wise steps that kernels run on the result of their anchor.

The CPU loop nests and the CUDA kernels take the meaning of every step from here. A new activation
is one more `case` in `activation`; a new way to combine the result with another tensor is one more
`case` in `apply_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.tir import Expr, broadcast


class Step(NamedTuple):
    """One step of an epilogue.

    Args:
        kind: `bias`, `add`, `multiply`, or one of `nas.graph.ACTIVATIONS`.
        operand: index in `Kernel.epilogue_operands` of the tensor that an `add` or a `multiply`
            reads; None for other steps.
    """

    kind: str
    operand: int | None = None

    @property
    def has_term(self) -> bool:
        """Whether the step combines the value with a second one; an activation does not."""
        return self.kind in ("bias", "add", "multiply")


def epilogue_steps(kernel: Kernel) -> list[Step]:
    """Return the steps of a kernel's epilogue in order, without a channel shuffle.

    The kernels for concatenation shuffle channels by the order in which they write them.
    """
    steps: list[Step] = []
    operands = 0
    for text in kernel.epilogue:
        kind = text.partition(":")[0]
        if kind in ("add", "multiply"):
            steps.append(Step(kind, operands))
            operands += 1
        elif not kind.startswith("shuffle"):
            steps.append(Step(kind))
    return steps


def expansion_steps(kernel: Kernel) -> list[Step]:
    """Return the steps behind the 1x1 convolution of a kernel with an expansion, in order."""
    return [Step(kind) for kind in kernel.expansion or ()]


def apply_steps(
    steps: Iterable[Step], value: Expr, term: Callable[[Step], Expr], width: int = 1
) -> Expr:
    """Return a value after steps of an epilogue.

    Args:
        steps: steps in order.
        value: float32 vector of `width` elements.
        term: returns the vector that a step with a second value reads, or None to skip the step.
        width: number of elements.
    """
    for step in steps:
        other = term(step) if step.has_term else None
        if not step.has_term or other is not None:
            value = apply_step(step, value, other, width)
    return value


def apply_step(step: Step, value: Expr, term: Expr = None, width: int = 1) -> Expr:
    """Return a value after one step of an epilogue.

    Args:
        step: step to apply.
        value: float32 vector of `width` elements.
        term: vector that a `bias`, an `add` or a `multiply` combines the value with.
        width: number of elements.

    Raises:
        ValueError: no schedule has this step.
    """
    match step.kind:
        case "bias" | "add":
            return value + term
        case "multiply":
            return value * term
    return activation(step.kind, value, width)


def activation(kind: str, value: Expr, width: int = 1) -> Expr:
    """Return an activation of a float32 vector; `nas.graph.ACTIVATIONS` defines the kinds.

    Raises:
        ValueError: no schedule has this activation.
    """

    def clip_to_6(x: Expr) -> Expr:
        return tirx.min(tirx.max(x, broadcast(0.0, width)), broadcast(6.0, width))

    match kind:
        case "relu":
            return tirx.max(value, broadcast(0.0, width))
        case "relu6":
            return clip_to_6(value)
        case "hard_sigmoid":
            return clip_to_6(value + broadcast(3.0, width)) * broadcast(1 / 6, width)
        case "hard_swish":
            return value * activation("hard_sigmoid", value, width)
    raise ValueError(f"the TVM runtime has no activation {kind!r}")
