"""What every GPU kernel shares: its tensors, and the epilogue behind its anchor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tvm import tirx

from nas.graph import ACTIVATIONS
from nas.latency.kernel import Kernel
from nas.schedules.cuda import grid
from nas.schedules.cuda.grid import Expr, Grid, Registers, Stmt, Tensor

MAX_ADDRESS = 2**31 - 1
"""Offsets are 32-bit; no tensor of a small network comes near."""


class Body:
    """The tensors of a kernel and its epilogue.

    Args:
        kernel: what to compute.
        dtype: of weights and activations; sums are float32.
        weight_size, bias_size: elements of the packed weights and bias.
        constants: parameters of the kernel's own, between its inputs and its weight.
    """

    def __init__(
        self,
        kernel: Kernel,
        dtype: str,
        weight_size: int = 0,
        bias_size: int = 0,
        constants: Sequence[Tensor] = (),
    ) -> None:
        self._constants = constants
        self.kernel, self.dtype = kernel, dtype
        self.registers = Registers()
        self.inputs = [
            Tensor(f"x{i}", size(operand.shape), dtype) for i, operand in enumerate(kernel.inputs)
        ]
        self.others = [
            Tensor(f"a{i}", size(operand.shape), dtype)
            for i, operand in enumerate(kernel.epilogue_operands)
        ]
        self.weight = Tensor("w", weight_size, dtype)
        self.bias = Tensor("b", bias_size, dtype)
        self.output = Tensor("y", size(kernel.output), dtype)

    def function(self, grid_of: Grid, body: Iterable[Stmt], name: str) -> tirx.PrimFunc:
        """Parameters: inputs, constants, weight, bias, the epilogue's operands, output."""
        parameters = [*self.inputs, *self._constants]
        parameters += [self.weight] if self.kernel.has_weights else []
        parameters += [self.bias] if self.kernel.has_bias else []
        parameters += [*self.others, self.output]
        return grid.function(parameters, grid_of, body, name)

    def width(self, *extents: int, most: int = grid.VECTOR_BYTES) -> int:
        """Channels that the epilogue can read and the output can store at once.

        Args:
            extents: other numbers that it must divide.
            most: bytes.
        """
        found = [self.kernel.output[0], *extents]
        for step, operand in self._steps():
            found += [operand.start] if step == "multiply" else [operand.start, operand.shape[0]]
        return grid.vector_width(self.dtype, *found, most=most)

    def finish(
        self, values: Sequence[Expr], pixel: Expr, channel: Expr, *, bias_at: Expr = None
    ) -> list[Stmt]:
        """Runs the epilogue on neighbouring channels of an output pixel and stores them.

        Args:
            values: float32, one a channel; `width` must allow as many.
            pixel, channel: where the first of them goes.
            bias_at: where the bias of the first is packed; None where there is none to add.
        """
        wide = len(values)
        found: list[Stmt] = []
        values = list(values)
        others = iter(zip(self.others, self.kernel.epilogue_operands, strict=True))
        if bias_at is not None and self.kernel.has_bias:
            read, bias = self.registers.read(self.bias, bias_at, wide)
            found += read
            values = [value + each for value, each in zip(values, bias, strict=True)]
        for step in self.kernel.epilogue:
            if step.startswith(("add", "multiply")):
                tensor, operand = next(others)
                adds = step.startswith("add")
                at = operand.start + channel + (pixel * operand.shape[0] if adds else 0)
                read, terms = self.registers.read(tensor, at, wide)
                found += read
                values = [
                    value + term if adds else value * term
                    for value, term in zip(values, terms, strict=True)
                ]
            elif step in ACTIVATIONS:
                # Kept in registers, so that what an activation names twice is worked out once.
                allocation, kept = self.registers.make(wide)
                found.append(allocation)
                found += [kept.put(i, value) for i, value in enumerate(values)]
                values = [activated(step, kept.load(i)) for i in range(wide)]
        at = pixel * self.kernel.output[0] + channel
        return [*found, *self.registers.write(self.output, at, values)]

    def _steps(self) -> Iterable[tuple[str, grid.Any]]:
        joins = [step for step in self.kernel.epilogue if step.startswith(("add", "multiply"))]
        for step, operand in zip(joins, self.kernel.epilogue_operands, strict=True):
            yield step.partition(":")[0], operand


def activated(kind: str, value: Expr) -> Expr:
    """An activation of a float32 value; see `nas.graph.ACTIVATIONS` for what they are."""

    def clipped(x: Expr) -> Expr:
        return tirx.min(tirx.max(x, grid.real(0)), grid.real(6))

    match kind:
        case "relu":
            return tirx.max(value, grid.real(0))
        case "relu6":
            return clipped(value)
        case "hard_sigmoid":
            return clipped(value + grid.real(3)) * grid.real(1 / 6)
        case "hard_swish":
            return value * activated("hard_sigmoid", value)
    raise ValueError(f"the TVM runtime has no activation {kind!r}")


def size(shape: tuple[int, int, int]) -> int:
    """Elements of a tensor. Raises ValueError for more than can be addressed."""
    found = shape[0] * shape[1] * shape[2]
    if found > MAX_ADDRESS:
        raise ValueError(f"a tensor of {found} elements is too large")
    return found
