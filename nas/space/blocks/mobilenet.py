"""Blocks of MobileNet, versions 1 to 3."""

from __future__ import annotations

from nas.space.builder import Builder, SymbolicTensor, require_option
from nas.space.elastic import Elastic


def separable(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    kernel: Elastic,
) -> SymbolicTensor:
    """Add MobileNetV1's block (Howard et al. 2017, figure 3): depthwise and 1x1, both activated."""
    x = build.depthwise_unit(x, f"{name}.depthwise", kernel=kernel, stride=stride)
    return build.conv_unit(x, f"{name}.project", width)


def inverted_residual(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    kernel: Elastic,
    expand: Elastic,
) -> SymbolicTensor:
    """Add MobileNetV2's block (Sandler et al. 2018, figure 4d): 1x1, depthwise, linear 1x1.

    An expand ratio of 1 has no first 1x1 convolution. The input is added to the output where their
    shapes are equal.
    """
    y = linear_bottleneck(build, x, name, width=width, stride=stride, kernel=kernel, expand=expand)
    return build.add(y, x) if y.shape == x.shape else y


def linear_bottleneck(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    kernel: Elastic,
    expand: Elastic,
) -> SymbolicTensor:
    """Add an inverted residual without its addition: the first block of a stage.

    The published networks change the width there, so they have no addition. In a space the widths
    of two stages can coincide; a block with an addition at some widths only would share its weights
    between two different functions.
    """
    if expand.value != 1:
        x = build.conv_unit(x, f"{name}.expand", (x.width * expand).rounded(1))
    x = build.depthwise_unit(x, f"{name}.depthwise", kernel=kernel, stride=stride)
    return build.conv_unit(x, f"{name}.project", width, activate=False)


def inverted_residual_v3(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    kernel: Elastic,
    expand: Elastic,
    se: str,
    activation: str,
) -> SymbolicTensor:
    """Add MobileNetV3's block (Howard et al. 2019, figure 4).

    The block is a `linear_bottleneck_v3` whose input is added to its output where their shapes are
    equal.
    """
    y = linear_bottleneck_v3(
        build,
        x,
        name,
        width=width,
        stride=stride,
        kernel=kernel,
        expand=expand,
        se=se,
        activation=activation,
    )
    return build.add(y, x) if y.shape == x.shape else y


def linear_bottleneck_v3(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    kernel: Elastic,
    expand: Elastic,
    se: str,
    activation: str,
) -> SymbolicTensor:
    """Add MobileNetV3's block without the addition; see `linear_bottleneck` for where it stands.

    The expansion has a multiple of 8 channels; at an expand ratio of 1 there is none. `se` is "se"
    for squeeze and excitation behind the depthwise convolution, or "none". Each pair of `se` and
    `activation` has weights of its own.
    """
    require_option("se", se, ("none", "se"))
    name = f"{name}.{activation}.{se}"
    if expand.value != 1:
        hidden = (x.width * expand).rounded(8)
        x = build.conv_unit(x, f"{name}.expand", hidden, activate=activation)
    x = build.depthwise_unit(
        x, f"{name}.depthwise", kernel=kernel, stride=stride, activate=activation
    )
    if se == "se":
        x = _squeeze_excite(build, x, f"{name}.se")
    return build.conv_unit(x, f"{name}.project", width, activate=False)


def _squeeze_excite(build: Builder, x: SymbolicTensor, name: str) -> SymbolicTensor:
    """Add squeeze and excitation as in MobileNetV3 (section 5.3), gated by a hard sigmoid.

    The squeeze layer has a quarter of the channels, rounded to a multiple of 8 as in the published
    networks.
    """
    gate = build.conv(
        build.global_pool(x), f"{name}.reduce", (x.width * 0.25).rounded(8), bias=True
    )
    gate = build.conv(build.activate(gate, "relu"), f"{name}.expand", x.width, bias=True)
    return build.multiply(x, build.activate(gate, "hard_sigmoid"))


def mobilenet_v3_head(
    build: Builder, x: SymbolicTensor, name: str, *, width: Elastic, hidden: Elastic
) -> SymbolicTensor:
    """Add MobileNetV3's last stage (figure 5): 1x1 to `width`, global mean, `hidden`, classes.

    The layers to `width` and `hidden` end with a hard swish. There is no norm behind the mean.
    """
    x = build.conv_unit(x, f"{name}.conv", width, activate="hard_swish")
    x = build.linear(build.global_pool(x), f"{name}.hidden", hidden)
    return build.linear(build.activate(x, "hard_swish"), f"{name}.linear", build.classes)
