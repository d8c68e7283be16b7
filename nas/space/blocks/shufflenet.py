"""ShuffleNet blocks."""

from __future__ import annotations

from nas.space.builder import Builder, Elastic, Tensor


def shuffle_entry(
    build: Builder,
    x: Tensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    unit: str,
    kernel: Elastic,
) -> Tensor:
    """The first unit of a ShuffleNetV2 stage (Ma et al. 2018, figure 3d), at any stride.

    Both branches see the whole input and give half of the output channels each.
    """
    half = width * 0.5
    side = build.depthwise_unit(x, f"{name}.side", kernel=kernel, stride=stride, activate=False)
    side = build.conv_unit(side, f"{name}.side_project", half)
    main = _branch(build, x, f"{name}.{unit}", half, stride, unit, kernel)
    return build.shuffle(build.concat(side, main), 2)


def shuffle_unit(
    build: Builder,
    x: Tensor,
    name: str,
    *,
    unit: str,
    kernel: Elastic,
) -> Tensor:
    """ShuffleNetV2's basic unit (figure 3c): half of the channels pass, half are convolved."""
    side, main = build.split(x)
    main = _branch(build, main, f"{name}.{unit}", main.width, 1, unit, kernel)
    return build.shuffle(build.concat(side, main), 2)


def _branch(
    build: Builder,
    x: Tensor,
    name: str,
    half: Elastic,
    stride: int,
    unit: str,
    kernel: Elastic,
) -> Tensor:
    """The convolved branch, to `half` channels.

    `basic` is 1x1, depthwise, 1x1; `xception` three separable convolutions (Single Path One-Shot,
    Guo et al. 2020, figure 3).
    """
    if unit == "basic":
        x = build.conv_unit(x, f"{name}.expand", half)
        x = build.depthwise_unit(
            x, f"{name}.depthwise", kernel=kernel, stride=stride, activate=False
        )
        return build.conv_unit(x, f"{name}.project", half)
    for step in (1, 2, 3):
        x = build.depthwise_unit(
            x, f"{name}.depthwise{step}", kernel=kernel, stride=stride, activate=False
        )
        x = build.conv_unit(x, f"{name}.project{step}", half)
        stride = 1
    return x
