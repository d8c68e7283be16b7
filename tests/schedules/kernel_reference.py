"""What a kernel computes according to its text, in torch and float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from nas.kernels.kernel import Kernel
from nas.kernels.kernel_text import Operand
from nas.schedules.templates import Constants, Expansion, Schedule, Templates
from nas.torch_kernels import ACTIVATIONS


@dataclass(frozen=True)
class KernelCase:
    """A kernel with tensors and constants, all of which its dtype can represent.

    Args:
        kernel: kernel to compute.
        tensors: what the kernel reads at run time, `batch x channels x height x width` each: the
            anchor's inputs, then the epilogue's operands.
        constants: its weights and biases.
    """

    kernel: Kernel
    tensors: Sequence[np.ndarray]
    constants: Constants

    @classmethod
    def random(cls, kernel: Kernel, dtype: str = "float32") -> KernelCase:
        """Return a case whose weights keep the results near one."""
        rng = np.random.default_rng(0)

        def values(*shape: int, scale: float = 1.0) -> np.ndarray:
            drawn = (scale * rng.standard_normal(shape)).astype(dtype)
            return drawn.astype(np.float32)

        def weight_of(shape: Sequence[int]) -> np.ndarray:
            return values(*shape, scale=float(np.sqrt(2 / np.prod(shape[1:]))))

        constants = Constants(
            weight_of(kernel.weight_shape) if kernel.has_weights else None,
            values(kernel.output[0]) if kernel.has_bias else None,
            Expansion(weight_of(kernel.expansion_shape), values(kernel.groups))
            if kernel.is_expanded
            else None,
        )
        tensors = [values(kernel.batch, *operand.shape) for operand in kernel.operands]
        return cls(kernel, tensors, constants)

    def arguments(self, templates: Templates, schedule: Schedule) -> list[np.ndarray]:
        """Return the arguments of a function that `templates` wrote; the output is the last."""
        constants = templates.pack(self.kernel, schedule, self.constants)
        tensors = [flat(each, templates.dtype) for each in self.tensors]
        split = len(self.kernel.inputs)
        output = np.empty(self.kernel.elements(self.kernel.output), templates.dtype)
        return [*tensors[:split], *constants, *tensors[split:], output]

    def error_of(self, output: np.ndarray) -> float:
        """Return the largest error of an output, relative to the largest value."""
        expected = flat(self.expected)
        return float(np.abs(output.astype(np.float32) - expected).max() / np.abs(expected).max())

    @cached_property
    def expected(self) -> np.ndarray:
        """The output, `batch x channels x height x width`."""
        kernel = self.kernel
        count = len(kernel.inputs)
        y = self._anchor(
            [_read(o, t) for o, t in zip(kernel.inputs, self.tensors[:count], strict=True)]
        )
        operands = iter(zip(kernel.epilogue_operands, self.tensors[count:], strict=True))
        for step in kernel.epilogue:
            if step in ACTIVATIONS:
                y = ACTIVATIONS[step](y)
            elif step.startswith("shuffle"):
                n, c, h, w = y.shape
                groups = kernel.shuffle_groups
                y = y.reshape(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)
            elif step.startswith("add"):
                y = y + _read(*next(operands))
            elif step.startswith("multiply"):
                y = y * _read(*next(operands))
            else:
                assert step == "bias"  # The anchor has added it.
        assert y.shape == (kernel.batch, *kernel.output)
        return y.numpy()

    def _anchor(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        kernel, x = self.kernel, inputs[0]
        weight, bias, expansion = self.constants
        w = None if weight is None else torch.from_numpy(weight)
        b = None if bias is None else torch.from_numpy(bias)
        if expansion is not None:
            x = F.conv2d(x, *map(torch.from_numpy, expansion))
            for step in (kernel.expansion or ())[1:]:
                x = ACTIVATIONS[step](x)
        if kernel.kind == "conv2d":
            assert w is not None
            return F.conv2d(x, w, b, kernel.stride, kernel.padding, 1, kernel.groups)
        if kernel.kind == "linear":
            assert w is not None
            return F.linear(x.flatten(1), w, b)[:, :, None, None]
        if kernel.kind in ("max_pool", "avg_pool"):
            pool = F.max_pool2d if kernel.kind == "max_pool" else F.avg_pool2d
            window = (kernel.kernel, kernel.stride, kernel.padding)
            both = [pool(x, *window, ceil_mode=ceil_mode) for ceil_mode in (False, True)]
            return next(y for y in both if tuple(y.shape[1:]) == kernel.output)
        if kernel.kind == "global_pool":
            return x.mean((2, 3), keepdim=True)
        assert kernel.kind in ("concat", "copy")
        return torch.cat(list(inputs), 1)


def sweep(templates: Templates, kernel: Kernel) -> list[dict[str, Any]]:
    """Return every schedule that timing a kernel can try, once each."""
    first = templates.candidates(kernel)
    schedules = [*first, *(more for each in first for more in templates.refinements(kernel, each))]
    return [each for i, each in enumerate(schedules) if each not in schedules[:i]]


def _read(operand: Operand, tensor: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(tensor)[:, operand.start : operand.stop]


def flat(tensor: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Return `... x channels x height x width` as kernels read it: flat, channels last."""
    return np.moveaxis(tensor, -3, -1).reshape(-1).astype(dtype)
