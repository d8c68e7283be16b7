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
    y = x
    if expand.value != 1:
        y = build.conv_unit(y, f"{name}.expand", (x.width * expand).rounded(1))
    y = build.depthwise_unit(y, f"{name}.depthwise", kernel=kernel, stride=stride)
    y = build.conv_unit(y, f"{name}.project", width, activate=False)
    return build.add(y, x) if y.shape == x.shape else y
