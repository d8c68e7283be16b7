"""Training ops that torch runs slowly, with kernels or other ops in their place.

On a CPU, most of the time of a training step of a small network goes into ops that are limited by
memory, and into the gradient of the weights of large depthwise kernels. Both have kernels in
`nas.schedules`, which TVM compiles when they are first needed, in some tenths of a second each.
They compute what torch's ops compute, up to rounding. They run where an op has one thread, as in
the shards of `nas.supernet.sharding`; where several threads share an op, torch's own ops do.

On a GPU, cuDNN needs up to seconds for a shape that it has not seen, and the subnets of a supernet
have hundreds of shapes. So pointwise convolutions are products of matrices there, and depthwise
ones run in torch's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from tvm import tirx

    from nas.schedules.cpu.loops import VectorUnit

KernelsT = TypeVar("KernelsT")

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "hard_sigmoid": F.hardsigmoid,
}
"""Activations by name, in torch. Batch norms compute those of our kernel, `_fused_activations`."""

MIN_ELEMENTS = 1 << 16
"""Elements of an activation map from which our kernels run; smaller ones do not take long."""

_MIN_DEPTHWISE_KERNEL = 5
"""Side of a depthwise kernel from which the gradient of its weights is ours; oneDNN has a fast one
for 3 x 3."""

_MIN_BLOCK = 8
"""Channels that a pass of a batch norm takes at once, below which torch is faster."""


def batch_norm(
    x: Tensor,
    mean: Tensor | None,
    variance: Tensor | None,
    scale: Tensor,
    shift: Tensor,
    momentum: float,
    eps: float,
    activation: str | None = None,
) -> Tensor:
    """Normalise a batch by its own statistics (Ioffe and Szegedy 2015), then activate it.

    The arguments but `activation` are those of `torch.nn.functional.batch_norm` in training.

    Args:
        x: the batch, `N x C x H x W`.
        mean: running mean `C`, updated in place; None for no running statistics.
        variance: running variance `C`, updated in place with the unbiased variance of the batch.
        scale: scale `C`.
        shift: shift `C`.
        momentum: weight of the batch in the running statistics.
        eps: epsilon that is added to the variance.
        activation: a key of `ACTIVATIONS`, or None.
    """
    if _is_large_map(x) and _block(x.shape[1]) >= _MIN_BLOCK:
        fused = activation if activation in _fused_activations() else None
        y: Tensor = _BatchNorm.apply(x, mean, variance, scale, shift, momentum, eps, fused)
        if fused == activation:
            return y
    else:
        y = F.batch_norm(x, mean, variance, scale, shift, True, momentum, eps)
    return ACTIVATIONS[activation](y, inplace=activation == "relu") if activation else y


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
        and x.shape[1] >= _vector_unit().lanes
    ):
        result: Tensor = _DepthwiseConv.apply(x, weight, stride)
        return result
    if x.is_cuda:
        x, weight = _autocast(x, weight)
        without_cudnn: Tensor = _DepthwiseConvWithoutCudnn.apply(
            x.contiguous(), weight.contiguous(), stride, padding
        )
        return without_cudnn
    return F.conv2d(x, weight, None, stride, padding, 1, x.shape[1])


def pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with kernels of one pixel, as matrix products.

    Args:
        x: the batch, `N x C x H x W`.
        weight: weights, `O x C x 1 x 1`.
        bias: biases, `O`.

    Returns:
        The result, `N x O x H x W`.
    """
    if x.shape[2:] == (1, 1):
        return F.linear(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]
    x, weight = _autocast(x, weight)
    result: Tensor = _PointwiseConv.apply(x.flatten(2), weight.flatten(1))
    if bias is not None:
        result = result + bias.to(result.dtype)[:, None]
    return result.unflatten(2, x.shape[2:])


def _autocast(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the dtype of the autocast context, as torch's own convolutions take them."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype)


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
        ctx: Any,
        x: Tensor,
        running_mean: Tensor | None,
        running_variance: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        momentum: float,
        eps: float,
        activation: str | None,
    ) -> Tensor:
        channels = x.shape[1]
        rows, block = x.numel() // channels, _block(channels)
        scale, shift = scale.contiguous(), shift.contiguous()
        y, mean, variance = torch.empty_like(x), torch.empty_like(scale), torch.empty_like(scale)
        kernels = _batch_norm_kernels(block, activation, eps)
        memory = torch.empty(kernels.scratch_vectors(rows) * channels)
        sizes = rows, channels // block
        kernels.forward(*sizes, _flat(x), scale, shift, _flat(y), mean, variance, memory)
        if running_mean is not None and running_variance is not None:
            running_mean.lerp_(mean, momentum)
            running_variance.lerp_(variance * (rows / (rows - 1)), momentum)
        ctx.save_for_backward(x, scale, shift, mean, variance)
        ctx.kernels, ctx.sizes = kernels, sizes
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *vectors = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        own, scale_gradient, shift_gradient = map(torch.empty_like, (x, *vectors[:2]))
        memory = torch.empty(ctx.kernels.scratch_vectors(ctx.sizes[0]) * x.shape[1])
        maps, results = (_flat(gradient), _flat(x)), (_flat(own), scale_gradient, shift_gradient)
        ctx.kernels.backward(*ctx.sizes, *maps, *vectors, *results, memory)
        return own, None, None, scale_gradient, shift_gradient, None, None, None


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
        wanted = ctx.needs_input_grad[0], False
        own, _ = _depthwise_gradients(gradient, x, weight, ctx.stride, kernel // 2, wanted)
        run, groups = _depthwise_kernel(kernel, ctx.stride, height, width)
        sums = torch.empty(groups(images), kernel, kernel, channels)
        run(images, channels, _flat(x), _flat(gradient), sums.view(-1))
        return own, sums.sum(0).permute(2, 0, 1)[:, None], None


class _PointwiseConv(torch.autograd.Function):
    """Products of one matrix `O x C` with the pixels `C x P` of each image.

    The gradient of the matrix is a sum over the images. Torch computes it for each image, which
    takes a matrix `O x C` an image. Where the pixels are fewer numbers than these, all of them are
    transposed instead, and the gradient is one product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        return torch.bmm(matrix.expand(len(x), -1, -1), x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, matrix = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        own = own_matrix = None
        if ctx.needs_input_grad[0]:
            own = torch.bmm(matrix.t().expand(len(x), -1, -1), gradient)
        if ctx.needs_input_grad[1]:
            outputs, inputs = matrix.shape
            if outputs * inputs < x.shape[2] * (outputs + inputs):
                own_matrix = torch.bmm(gradient, x.transpose(1, 2)).sum(0)
            else:
                rows = gradient.transpose(0, 1).flatten(1), x.transpose(0, 1).flatten(1)
                own_matrix = rows[0] @ rows[1].t()
        return own, own_matrix


class _DepthwiseConvWithoutCudnn(torch.autograd.Function):
    """Depthwise convolution in torch's own kernels, also where torch would choose cuDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        with _without_cudnn():
            return F.conv2d(x, weight, None, stride, padding, 1, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        with _without_cudnn():
            own, own_weight = _depthwise_gradients(
                gradients[0].contiguous(),
                x,
                weight,
                ctx.stride,
                ctx.padding,
                ctx.needs_input_grad[:2],
            )
        return own, own_weight, None, None


def _depthwise_gradients(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None]:
    """Return torch's gradients of a depthwise convolution by its images and by its weights.

    Args:
        gradient: gradient of the result.
        x, weight, stride, padding: see `depthwise_conv`.
        wanted: which of the two are computed; the other is None.
    """
    own, own_weight, _ = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        [stride] * 2,
        [padding] * 2,
        [1, 1],
        False,
        [0, 0],
        x.shape[1],
        [*wanted, False],
    )
    return own, own_weight


@contextmanager
def _without_cudnn() -> Iterator[None]:
    enabled = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = enabled


def _flat(x: Tensor) -> Tensor:
    """Return a channels-last map `N x C x H x W` as it is in memory."""
    return x.detach().permute(0, 2, 3, 1).view(-1)


def _once(compile_kernels: Callable[..., KernelsT]) -> Callable[..., KernelsT]:
    """Return a cached function that one thread runs at a time; others wait for its result."""
    cached, lock = cache(compile_kernels), Lock()

    @wraps(compile_kernels)
    def run(*sizes: Hashable) -> KernelsT:
        with lock:
            return cached(*sizes)

    return run


class _BatchNormKernels(NamedTuple):
    """Compiled kernels, and the memory that they need; see `nas.schedules.cpu.batch_norm`."""

    forward: Callable[..., None]
    backward: Callable[..., None]
    scratch_vectors: Callable[[int], int]


@_once
def _batch_norm_kernels(block: int, activation: str | None, eps: float) -> _BatchNormKernels:
    from nas.schedules.cpu import batch_norm as kernels

    arguments = block, activation, eps, _vector_unit().lanes
    forward, backward = kernels.forward(*arguments), kernels.backward(*arguments)
    return _BatchNormKernels(_compile(forward), _compile(backward), kernels.scratch_vectors)


@_once
def _depthwise_kernel(
    kernel: int, stride: int, height: int, width: int
) -> tuple[Callable[..., None], Callable[[int], int]]:
    """Return the compiled gradient of the weights, and its number of groups of images."""
    from nas.schedules.cpu import depthwise_gradient as kernels

    written = kernels.weight_gradient(kernel, stride, height, width, _vector_unit().lanes)
    return _compile(written), lambda images: -(-images // kernels.IMAGES_PER_GROUP)


@cache
def _fused_activations() -> frozenset[str | None]:
    from nas.schedules.cpu.batch_norm import ACTIVATIONS

    return frozenset(ACTIVATIONS)


@cache
def _block(channels: int) -> int:
    from nas.schedules.cpu.batch_norm import block_size

    return block_size(channels, _vector_unit())


@cache
def _vector_unit() -> VectorUnit:
    from nas.schedules.cpu.loops import this_processor, vector_unit

    return vector_unit(this_processor())


def _compile(written: tirx.PrimFunc) -> Callable[..., None]:
    import tvm

    from nas.schedules.cpu.loops import this_processor

    name = str(written.attrs["global_symbol"])
    library = tvm.tirx.build(tvm.IRModule({name: written}), this_processor(), "tirx")
    kernel: Callable[..., None] = library[name]
    return kernel
