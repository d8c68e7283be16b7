"""Blocks that all families use: stem convolution, pooling and heads."""

from __future__ import annotations

from nas.space.builder import Builder, SymbolicTensor
from nas.space.elastic import Elastic


def conv(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    kernel: Elastic,
    padding: str = "same",
    activation: str | None = None,
) -> SymbolicTensor:
    """Add a dense convolution with norm and activation: the stem of every family.

    Padding "valid" applies only where the convolution has a stride; where a small image dropped the
    stride, the padding is "same". With an `activation` other than the space's, the convolution has
    weights of its own for each activation.
    """
    if activation is not None:
        name = f"{name}.{activation}"
    return build.conv_unit(
        x,
        name,
        width,
        kernel=kernel,
        stride=stride,
        padding=padding if stride > 1 else "same",
        activate=True if activation is None else activation,
    )


def max_pool(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    stride: int,
    kernel: Elastic,
    padding: str = "same",
) -> SymbolicTensor:
    """Add a max pooling; nothing where a small image dropped the stride."""
    if stride == 1:
        return x
    return build.max_pool(x, name, kernel=int(kernel), stride=stride, padding=padding)


def pool_classifier(
    build: Builder, x: SymbolicTensor, name: str, *, width: Elastic
) -> SymbolicTensor:
    """Add a 1x1 convolution, global mean and linear layer (MobileNetV2, ShuffleNetV2)."""
    return linear_classifier(build, build.conv_unit(x, f"{name}.conv", width), name)


def linear_classifier(build: Builder, x: SymbolicTensor, name: str) -> SymbolicTensor:
    """Add a global mean and a linear layer (MobileNetV1)."""
    return build.linear(build.global_pool(x), f"{name}.linear", build.classes)


def conv_classifier(build: Builder, x: SymbolicTensor, name: str) -> SymbolicTensor:
    """Add a 1x1 convolution to the classes and the global mean (SqueezeNet, section 3.1).

    The published network has a ReLU between them, which this block leaves out: with it, a class
    whose scores are all negative gets no gradient and is never predicted again.
    """
    return build.global_pool(build.conv(x, f"{name}.conv", build.classes, bias=True))
