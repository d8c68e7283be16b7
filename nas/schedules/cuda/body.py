"""What all CUDA kernels share: their parameters, and the epilogue behind the anchor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from tvm import tirx

from nas.kernels.kernel import Kernel
from nas.schedules.cuda import grid
from nas.schedules.cuda.grid import Grid, RegisterAllocator
from nas.schedules.epilogue import Step, apply_step, epilogue_steps
from nas.schedules.templates import Parameters
from nas.schedules.tir import Expr, Stmt


class KernelBody(Parameters):
    """Parameters, registers and epilogue of a kernel for one image; sums are in float32.

    See `Parameters` for the arguments.

    Attributes:
        registers: allocator of the kernel's register arrays.
    """

    def __init__(
        self,
        kernel: Kernel,
        dtype: str,
        sizes: tuple[int, int] = (0, 0),
        expansion_sizes: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(kernel, dtype, sizes, expansion_sizes)
        self.registers = RegisterAllocator()
        self._steps = epilogue_steps(kernel)

    def function(self, launch: Grid, body: Iterable[Stmt], name: str) -> tirx.PrimFunc:
        """Return the kernel's function; see `Templates.function` for its parameters.

        Args:
            launch: blocks and threads.
            body: statements of one thread.
            name: symbol of the function.
        """
        return grid.function(self.in_order(), launch, body, name)

    def channel_vector(self, *extents: int, max_bytes: int = grid.MAX_VECTOR_BYTES) -> int:
        """Return how many channels the epilogue can read and the output can store as one vector.

        Args:
            extents: further sizes and offsets that the width must divide.
            max_bytes: largest size of the vector.
        """
        divided = [self.kernel.output[0], *extents]
        for step in self._steps:
            if step.operand is not None:
                operand = self.kernel.epilogue_operands[step.operand]
                divided.append(operand.start)
                if step.kind != "multiply":
                    divided.append(operand.shape[0])
        return grid.vector_width(self.dtype, *divided, max_bytes=max_bytes)

    def store_result(
        self, values: Sequence[Expr], pixel: Expr, channel: Expr, *, bias_at: Expr = None
    ) -> list[Stmt]:
        """Return statements that run the epilogue on channels of an output pixel and store them.

        Args:
            values: float32 values of consecutive channels, as many as `channel_vector` allows.
            pixel: index of the output pixel, `row * width + column`.
            channel: channel of the first value.
            bias_at: offset of the first channel in the packed bias; None if no bias is added.
        """
        width = len(values)

        def load_term(step: Step) -> tuple[list[Stmt], list[Expr]]:
            if step.operand is None:
                return self.registers.load(self.bias, bias_at, width)
            operand = self.kernel.epilogue_operands[step.operand]
            pixel_at = 0 if step.kind == "multiply" else pixel * operand.shape[0]
            buffer = self.epilogue_operands[step.operand]
            return self.registers.load(buffer, operand.start + channel + pixel_at, width)

        statements, results = self.apply_steps(self._steps, values, load_term)
        at = pixel * self.kernel.output[0] + channel
        return [*statements, *self.registers.store(self.output, at, results)]

    def apply_steps(
        self,
        steps: Iterable[Step],
        values: Sequence[Expr],
        load_term: Callable[[Step], tuple[list[Stmt], list[Expr]]],
    ) -> tuple[list[Stmt], list[Expr]]:
        """Run steps of an epilogue on values of consecutive channels.

        Args:
            steps: steps in order.
            values: float32 values.
            load_term: loads what a `bias`, an `add` or a `multiply` reads, one value for each of
                `values`; see `RegisterAllocator.load` for the result.

        Returns:
            Statements to run first, and the results.
        """
        statements: list[Stmt] = []
        results = list(values)
        for step in steps:
            if step.has_term:
                loads, terms = load_term(step)
                statements += loads
                results = [apply_step(step, v, t) for v, t in zip(results, terms, strict=True)]
            else:
                # An activation may use its argument twice; a register keeps it computed once.
                allocation, arguments = self.registers.allocate(len(results))
                statements.append(allocation)
                statements += [arguments.store_float32(i, v) for i, v in enumerate(results)]
                results = [apply_step(step, arguments.load(i)) for i in range(len(results))]
        return statements, results
