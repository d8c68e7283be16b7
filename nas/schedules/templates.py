"""Schedule templates: what the runtime needs to know about the kernels of a kind of device.

A template writes a kernel as a TIR function from a *schedule*: a small dictionary of tile sizes and
other settings. CPU and GPU templates differ in everything but this interface: they name candidate
schedules to measure, write the function of each, and pack weights in the order in which the
function reads them. Fusion, the sweep over candidates, timing and whole networks are the same for
all devices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax, tirx

from nas.kernels.kernel import Kernel
from nas.kernels.kernel_text import Operand
from nas.schedules.tir import Buffer

Schedule = Mapping[str, Any]
"""Tile sizes and other settings of a kernel, as JSON can hold them.

A latency table's row has the schedule of its kernel, and is enough to build the kernel again. Keys
and values are therefore a file format.
"""


class Expansion(NamedTuple):
    """Constants of the 1x1 convolution in front of a depthwise convolution.

    Args:
        weight: weights, shaped `Kernel.expansion_shape`: `(channels, inputs, 1, 1)`.
        bias: bias, one value for each of the depthwise convolution's channels.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


class Constants(NamedTuple):
    """Weights and biases of a kernel; None for those that it does not have.

    Args:
        weight: weights, shaped `Kernel.weight_shape`.
        bias: bias, one value for each output channel.
        expansion: constants of the expansion.
    """

    weight: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    expansion: Expansion | None = None


class Templates(Protocol):
    """Write kernels for one TVM target.

    Attributes:
        target: TVM target that the functions are compiled for.
        dtype: type of weights and activations, as numpy and TVM name it.
    """

    target: tvm.target.Target
    dtype: str

    def candidates(self, kernel: Kernel) -> list[dict[str, Any]]:
        """Return the schedules to measure first; at least one."""
        ...

    def refinements(self, kernel: Kernel, best: dict[str, Any]) -> list[dict[str, Any]]:
        """Return variations of the fastest schedule so far to measure next; there may be none."""
        ...

    def function(self, kernel: Kernel, schedule: Schedule, name: str) -> tirx.PrimFunc:
        """Return the TIR function of a kernel.

        The function's parameters are flat arrays, tensors in `image, height, width, channels`
        order, constants as `pack` returns them: inputs, weight and bias of the expansion, weight,
        bias, operands of the epilogue, output. What a kernel does not have is left out.

        Args:
            kernel: kernel to write.
            schedule: tile sizes, from `candidates`, `refinements` or a latency table.
            name: symbol of the function.

        Raises:
            ValueError: these templates do not have the kernel, or its tiles do not fit.
        """
        ...

    def pack(self, kernel: Kernel, schedule: Schedule, own: Constants) -> list[NDArray[Any]]:
        """Return the constants of a kernel as its function reads them.

        Args:
            kernel: kernel that the constants are for.
            schedule: schedule of the function.
            own: its weights and biases.

        Returns:
            Flat arrays in the order of the function's parameters.
        """
        ...


class Parameters:
    """The parameters of a kernel's function; see `Templates.function` for their order.

    Buffers of what the kernel does not have are empty, and no parameters.

    Args:
        kernel: the kernel.
        dtype: type of the elements.
        sizes: elements of the packed weight and bias.
        expansion_sizes: elements of the packed weight and bias of the expansion.
    """

    def __init__(
        self,
        kernel: Kernel,
        dtype: str = "float32",
        sizes: tuple[int, int] = (0, 0),
        expansion_sizes: tuple[int, int] = (0, 0),
    ) -> None:
        def tensors(prefix: str, operands: Sequence[Operand]) -> list[Buffer]:
            shapes = [operand.shape for operand in operands]
            return [Buffer(f"{prefix}{i}", kernel.elements(s), dtype) for i, s in enumerate(shapes)]

        self.kernel, self.dtype = kernel, dtype
        self.inputs = tensors("x", kernel.inputs)
        self.epilogue_operands = tensors("a", kernel.epilogue_operands)
        self.weight, self.bias = (Buffer(*each, dtype) for each in zip("wb", sizes, strict=True))
        names = ("ew", "eb")
        self.expansion_weight, self.expansion_bias = (
            Buffer(*each, dtype) for each in zip(names, expansion_sizes, strict=True)
        )
        self.output = Buffer("y", kernel.elements(kernel.output), dtype)

    def in_order(self) -> list[Buffer]:
        """Return the parameters in the order of the function."""
        kernel = self.kernel
        constants = [self.expansion_weight, self.expansion_bias] if kernel.is_expanded else []
        constants += [self.weight] if kernel.has_weights else []
        constants += [self.bias] if kernel.has_bias else []
        return [*self.inputs, *constants, *self.epilogue_operands, self.output]


def balanced(extent: int, max_size: int) -> int:
    """Return the size of equal tiles that cover `extent` in as few tiles as `max_size` would."""
    return -(-extent // -(-extent // max_size))


_LOWERING = tvm.transform.Sequential(
    [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        # Otherwise the virtual machine copies a reference after each kernel.
        relax.transform.CanonicalizeBindings(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
)
"""TVM's default lowering, without the passes that fuse or rewrite kernels, and those that replay
kernels as a CUDA graph: a network would then launch other work than the kernels that were timed."""


def add_function(builder: relax.BlockBuilder, function: tvm.tirx.PrimFunc) -> tvm.ir.GlobalVar:
    """Add a function to the module of a builder, under its own name."""
    return builder.add_func(function, str(function.attrs["global_symbol"]))


def lower(module: tvm.IRModule, templates: Templates) -> tvm.IRModule:
    """Lower a Relax module of calls of functions from `templates` to calls of the runtime."""
    with templates.target:
        return _LOWERING(module)


def generate_code(
    lowered: tvm.IRModule, templates: Templates, *, is_native: bool
) -> relax.VMExecutable:
    """Generate the code of a lowered Relax module.

    Args:
        lowered: result of `lower`.
        templates: the templates that it was lowered with.
        is_native: whether Relax functions become native code, and not instructions for the virtual
            machine to interpret. This halves the time of a call. But compiling a function of
            thousands of calls takes minutes.
    """
    return relax.build(
        lowered,
        templates.target,
        relax_pipeline=None,
        tir_pipeline="tirx",
        exec_mode="compiled" if is_native else "bytecode",
    )


def build(module: tvm.IRModule, templates: Templates) -> relax.VMExecutable:
    """Compile a Relax module of calls of functions from `templates`, to be interpreted."""
    return generate_code(lower(module, templates), templates, is_native=False)


def flat_type(shape: Sequence[int], dtype: str) -> relax.TensorType:
    """Return the Relax type of a tensor as kernels take it: one dimension with all elements."""
    return relax.TensorType((int(np.prod(shape)),), dtype)


def random_constants(
    templates: Templates, kernel: Kernel, schedule: Schedule, rng: np.random.Generator
) -> list[NDArray[Any]]:
    """Return random packed constants of a kernel, see `Templates.pack`.

    Weights have the variance of He et al. (2015), "Delving deep into rectifiers". Activations then
    stay near one through a network, and no denormal number slows a measurement down.
    """

    def random_weight(shape: Sequence[int]) -> NDArray[np.float32]:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return (rng.standard_normal(shape, np.float32) * scale).astype(np.float32)

    def random_bias(count: int) -> NDArray[np.float32]:
        return rng.standard_normal(count, np.float32) * np.float32(0.1)

    expansion = None
    if kernel.is_expanded:
        expansion = Expansion(random_weight(kernel.expansion_shape), random_bias(kernel.groups))
    weight = random_weight(kernel.weight_shape) if kernel.has_weights else None
    bias = random_bias(kernel.output[0]) if kernel.has_bias else None
    return templates.pack(kernel, schedule, Constants(weight, bias, expansion))
