"""The blocks around the families' own: stem convolution, pooling, heads."""

from __future__ import annotations

from nas.space.builder import Builder, Elastic, Tensor


def conv(
    build: Builder,
    x: Tensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    kernel: Elastic,
    padding: str = "same",
    activation: str | None = None,
) -> Tensor:
    """A dense convolution with norm and activation: the stem of every family.

    Padding "valid" holds where the convolution shrinks the map: where a small image dropped the
    stride, padding is "same". `activation` is the space's unless it is named; a named one has
    weights of its own.
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
    build: Builder, x: Tensor, name: str, *, stride: int, kernel: Elastic, padding: str = "same"
) -> Tensor:
    """Max pooling that only shrinks the map: where the stride is dropped, so is the pooling."""
    if stride == 1:
        return x
    return build.max_pool(x, name, kernel=int(kernel), stride=stride, padding=padding)


def pool_classifier(build: Builder, x: Tensor, name: str, *, width: Elastic) -> Tensor:
    """1x1 convolution to `width`, global mean, linear layer (MobileNetV2, ShuffleNetV2)."""
    return linear_classifier(build, build.conv_unit(x, f"{name}.conv", width), name)


def linear_classifier(build: Builder, x: Tensor, name: str) -> Tensor:
    """Global mean and linear layer (MobileNetV1)."""
    return build.linear(build.global_pool(x), f"{name}.linear", build.classes)


def conv_classifier(build: Builder, x: Tensor, name: str) -> Tensor:
    """1x1 convolution to the classes, then the global mean (SqueezeNet, section 3.1).

    The published network has a ReLU between them, which this leaves out: a class whose scores are
    all negative then gets no gradient and is lost for good.
    """
    return build.global_pool(build.conv(x, f"{name}.conv", build.classes, bias=True))
