"""The blocks around the families' own: stem convolution, pooling, heads."""

from __future__ import annotations

from nas.space.builder import Builder, Elastic, Tensor


def conv(
    build: Builder, x: Tensor, name: str, *, width: Elastic, stride: int, kernel: Elastic
) -> Tensor:
    """A dense convolution with norm and activation: the stem of every family."""
    return build.conv_unit(x, name, width, kernel=kernel, stride=stride)


def max_pool(build: Builder, x: Tensor, name: str, *, stride: int, kernel: Elastic) -> Tensor:
    """Max pooling that only shrinks the map: where the stride is dropped, so is the pooling."""
    return x if stride == 1 else build.max_pool(x, name, kernel=int(kernel), stride=stride)


def pool_classifier(build: Builder, x: Tensor, name: str, *, width: Elastic) -> Tensor:
    """1x1 convolution to `width`, global mean, linear layer (MobileNetV2, ShuffleNetV2)."""
    x = build.conv_unit(x, f"{name}.conv", width)
    return build.linear(build.global_pool(x), f"{name}.linear", build.classes)


def conv_classifier(build: Builder, x: Tensor, name: str) -> Tensor:
    """1x1 convolution to the classes, activation, global mean (SqueezeNet, section 3.1)."""
    x = build.conv(x, f"{name}.conv", build.classes, bias=True)
    return build.global_pool(build.activate(x))
