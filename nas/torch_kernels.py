"""Training ops that torch runs slowly on a CPU, with kernels of our own.

Most of the time of a training step of a small network goes into ops that are limited by memory, and
into the gradient of the weights of large depthwise kernels. Both have kernels in `nas.schedules`,
which TVM compiles when they are first needed, in some tenths of a second each. They compute what
torch's ops compute, up to rounding. They run where an op has one thread, as in the shards of
`nas.supernet.sharding`; where several threads share an op, torch's own ops do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from tvm import tirx

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
}
"""Activations by name, in torch."""

MIN_ELEMENTS = 1 << 16
"""Elements of an activation map from which our kernels run; smaller ones do not take long."""

_MIN_DEPTHWISE_KERNEL = 5
"""Side of a depthwise kernel from which the gradient of its weights is ours; oneDNN has a fast one
for 3 x 3."""

_MIN_BLOCK = 8
"""Channels that a pass of a batch norm takes at once, below which torch is faster."""


class Normalised(NamedTuple):
    """Result of a batch norm with its activation.

    Attributes:
        output: the result, `N x C x H x W`.
        mean: mean `C` of the batch.
        variance: population variance `C` of the batch.
    """

    output: Tensor
    mean: Tensor
    variance: Tensor


def batch_norm(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, activation: str | None = None
) -> Normalised:
    """Normalise a batch by its own statistics (Ioffe and Szegedy 2015), then activate it.

    Args:
        x: the batch, `N x C x H x W`.
        scale: scale `C`.
        shift: shift `C`.
        eps: epsilon that is added to the variance.
        activation: a key of `ACTIVATIONS`, or None. The gradient flows through the output alone.
    """
    if _is_large_map(x) and activation != "hard_sigmoid" and _block(x.shape[1]) >= _MIN_BLOCK:
        return Normalised(*_BatchNorm.apply(x, scale, shift, eps, activation))
    mean, variance = torch.zeros_like(scale), torch.zeros_like(scale)
    with torch.no_grad():
        count = x.numel() // x.shape[1]
    # Momentum 1 stores the batch's own statistics, which saves a second pass over x.
    y = F.batch_norm(x, mean, variance, scale, shift, True, 1.0, eps)
    # Torch stores the unbiased variance.
    variance = variance * ((count - 1) / count)
    if activation:
        y = ACTIVATIONS[activation](y, inplace=activation == "relu")
    return Normalised(y, mean, variance)


def depthwise_conv(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Return a depthwise convolution without bias.

    Args:
        x: the batch, `N x C x H x W`.
        weight: weights, `C x 1 x K x K`.
        stride: stride of the convolution.
        padding: rows and columns of zeros on each side of the images.
    """
    kernel = weight.shape[2]
    if (
        torch.is_grad_enabled()
        and weight.requires_grad
        and kernel >= _MIN_DEPTHWISE_KERNEL
        and padding == kernel // 2
        and _is_large_map(x)
        and x.shape[1] >= _vector_registers()[0]
    ):
        result: Tensor = _DepthwiseConv.apply(x, weight, stride)
        return result
    return F.conv2d(x, weight, None, stride, padding, 1, x.shape[1])


def _is_large_map(x: Tensor) -> bool:
    """Return whether our kernels can read an activation map, and are faster than torch's."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and MIN_ELEMENTS <= x.numel() < 2**31
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_autocast_enabled("cpu")
        and torch.get_num_threads() == 1
    )


class _BatchNorm(torch.autograd.Function):
    """Batch norm with its activation; see `nas.schedules.cpu.batch_norm`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, activation: str | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, blocks = _sizes(x)
        scale, shift = scale.contiguous(), shift.contiguous()
        y, mean, variance = torch.empty_like(x), torch.empty_like(scale), torch.empty_like(scale)
        run, _, scratch = _batch_norm_kernels(_block(x.shape[1]), activation, eps)
        memory = torch.empty(scratch(rows) * x.shape[1])
        run(rows, blocks, _flat(x), scale, shift, _flat(y), mean, variance, memory)
        ctx.save_for_backward(x, scale, shift, mean, variance)
        ctx.eps, ctx.activation = eps, activation
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, scale, shift, mean, variance = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        rows, blocks = _sizes(x)
        own, scale_gradient, shift_gradient = (torch.empty_like(each) for each in (x, scale, shift))
        _, run, scratch = _batch_norm_kernels(_block(x.shape[1]), ctx.activation, ctx.eps)
        memory = torch.empty(scratch(rows) * x.shape[1])
        maps = _flat(gradient), _flat(x)
        results = _flat(own), scale_gradient, shift_gradient
        run(rows, blocks, *maps, scale, shift, mean, variance, *results, memory)
        return own, scale_gradient, shift_gradient, None, None


class _DepthwiseConv(torch.autograd.Function):
    """Depthwise convolution with our gradient of its weights, and torch's for the rest."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[2] // 2, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight = ctx.saved_tensors
        (images, channels, height, width), kernel = x.shape, weight.shape[2]
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        own, _, _ = torch.ops.aten.convolution_backward(
            gradient,
            x,
            weight,
            None,
            [ctx.stride] * 2,
            [kernel // 2] * 2,
            [1, 1],
            False,
            [0, 0],
            channels,
            [ctx.needs_input_grad[0], False, False],
        )
        run, groups = _depthwise_kernel(kernel, ctx.stride, height, width)
        sums = torch.empty(groups(images), kernel, kernel, channels)
        run(images, channels, _flat(x), _flat(gradient), sums.view(-1))
        return own, sums.sum(0).permute(2, 0, 1)[:, None], None


def _sizes(x: Tensor) -> tuple[int, int]:
    """Return the rows of a map, and its blocks of channels."""
    channels = x.shape[1]
    return x.numel() // channels, channels // _block(channels)


def _flat(x: Tensor) -> Tensor:
    """Return a channels-last map `N x C x H x W` as it is in memory."""
    return x.detach().permute(0, 2, 3, 1).view(-1)


@cache
def _batch_norm_kernels(
    block: int, activation: str | None, eps: float
) -> tuple[Callable[..., None], Callable[..., None], Callable[[int], int]]:
    """Return the compiled forward and backward kernels, and the memory that they need."""
    from nas.schedules.cpu import batch_norm as kernels

    arguments = block, activation, eps, _vector_registers()[0]
    forward, backward = kernels.forward(*arguments), kernels.backward(*arguments)
    return _compile(forward), _compile(backward), kernels.scratch_vectors


@cache
def _depthwise_kernel(
    kernel: int, stride: int, height: int, width: int
) -> tuple[Callable[..., None], Callable[[int], int]]:
    """Return the compiled gradient of the weights, and its number of groups of images."""
    from nas.schedules.cpu import depthwise_gradient as kernels

    written = kernels.weight_gradient(kernel, stride, height, width, _vector_registers()[0])
    return _compile(written), lambda images: -(-images // kernels.IMAGES_PER_GROUP)


@cache
def _block(channels: int) -> int:
    from nas.schedules.cpu.batch_norm import block_size

    return block_size(channels, *_vector_registers())


@cache
def _vector_registers() -> tuple[int, int]:
    from nas.schedules.cpu.loops import this_processor, vector_registers

    return vector_registers(this_processor())


def _compile(written: tirx.PrimFunc) -> Callable[..., None]:
    import tvm

    from nas.schedules.cpu.loops import this_processor

    name = str(written.attrs["global_symbol"])
    library = tvm.tirx.build(tvm.IRModule({name: written}), this_processor(), "tirx")
    kernel: Callable[..., None] = library[name]
    return kernel
