"""MobileNet blocks."""

from __future__ import annotations

from nas.space.builder import Builder, Elastic, Tensor


def inverted_residual(
    build: Builder,
    x: Tensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    kernel: Elastic,
    expand: Elastic,
) -> Tensor:
    """MobileNetV2's block (Sandler et al. 2018): expand 1x1, depthwise, linear 1x1.

    An expand ratio of 1 has no expansion. The input is added where the shapes allow it.
    """
    y = linear_bottleneck(build, x, name, width=width, stride=stride, kernel=kernel, expand=expand)
    return build.add(y, x) if y.shape == x.shape else y


def linear_bottleneck(
    build: Builder,
    x: Tensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    kernel: Elastic,
    expand: Elastic,
) -> Tensor:
    """The inverted residual without its addition: the first block of a stage.

    The published stages change the width there, so they add nothing. In a space neighbouring widths
    can coincide; an addition that comes and goes with a width would share its weights badly.
    """
    if expand.value != 1:
        x = build.conv_unit(x, f"{name}.expand", (x.width * expand).rounded(1))
    x = build.depthwise_unit(x, f"{name}.depthwise", kernel=kernel, stride=stride)
    return build.conv_unit(x, f"{name}.project", width, activate=False)
