"""Blocks of ShuffleNet, versions 1 and 2."""

from __future__ import annotations

from nas.errors import SpaceError
from nas.graph import Channels
from nas.space.blocks.plain import linear_classifier
from nas.space.builder import Builder, SymbolicTensor, require_option
from nas.space.elastic import Elastic


def shuffle_entry(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    width: Elastic,
    stride: int,
    unit: str,
    kernel: Elastic,
) -> SymbolicTensor:
    """Add the first unit of a ShuffleNetV2 stage (Ma et al. 2018, figure 3d), at any stride.

    Both branches read the whole input and make half of the output channels each.
    """
    half = Channels.spread(int(width * 0.5), int((width * 0.5).largest))
    side = build.depthwise_unit(x, f"{name}.side", kernel=kernel, stride=stride, activate=False)
    side = build.conv_unit(side, f"{name}.side_project", half)
    main = _branch(build, x, f"{name}.{unit}", half, stride, unit, kernel)
    return build.shuffle(build.concat(side, main), 2)


def shuffle_unit(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    unit: str,
    kernel: Elastic,
) -> SymbolicTensor:
    """Add ShuffleNetV2's basic unit (figure 3c), which convolves half of the channels.

    Each convolved channel replaces one of the input, and takes over its number. A supernet's later
    ops therefore read the same channels by the same weights whatever the depth of the stage.
    """
    side, main = build.split(x)
    main = _branch(build, main, f"{name}.{unit}", main.channels, 1, unit, kernel)
    return build.shuffle(build.concat(side, main, replaces=x), 2)


def _branch(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    out: Channels,
    stride: int,
    unit: str,
    kernel: Elastic,
) -> SymbolicTensor:
    """Add the convolved branch of a unit, with the output channels `out`.

    The unit "basic" is 1x1, depthwise, 1x1; "xception" is three separable convolutions (Single Path
    One-Shot, Guo et al. 2020, figure 3).
    """
    require_option("unit", unit, ("basic", "xception"))
    if unit == "basic":
        x = build.conv_unit(x, f"{name}.expand", out)
        x = build.depthwise_unit(
            x, f"{name}.depthwise", kernel=kernel, stride=stride, activate=False
        )
        return build.conv_unit(x, f"{name}.project", out)
    for step in (1, 2, 3):
        x = build.depthwise_unit(
            x, f"{name}.depthwise{step}", kernel=kernel, stride=stride, activate=False
        )
        x = build.conv_unit(x, f"{name}.project{step}", out)
        stride = 1
    return x


def shuffle_v1_entry(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    stride: int,
    groups: Elastic,
    base: Elastic,
    multiple: Elastic,
    kernel: Elastic,
    first: str = "grouped",
) -> SymbolicTensor:
    """Add the first unit of a ShuffleNetV1 stage (Zhang et al. 2018, figure 2c).

    The unit has `base * multiple` output channels: those of the input, averaged where the stride
    shrinks the map, and convolved channels for the rest. `first` is "dense" for the network's first
    unit, whose 1x1 convolution reads only the few channels of the stem, or "grouped".

    A narrower version of a grouped convolution has different groups rather than fewer channels in
    each, so the width of a stage is not a choice, and every pair of `groups` and `base` has weights
    of its own.
    """
    require_option("first", first, ("dense", "grouped"))
    if multiple.smallest != multiple.largest:
        raise SpaceError(
            f"multiple is {multiple.value:g}, out of {multiple.smallest:g} to "
            f"{multiple.largest:g}.",
            remedy="Give one multiple; a narrower variant is another base.",
        )
    width = int(base.value * multiple.value)
    missing = width - x.shape[0]
    if missing < 1:
        raise SpaceError(
            f"A unit of {width} channels cannot keep its {x.shape[0]} incoming ones.",
            remedy="Use a larger base or multiple.",
        )
    side = x
    if stride > 1:
        side = build.avg_pool(x, f"{name}.pool", kernel=3, stride=stride)
    part = 1 if first == "dense" else int(groups)
    name = _variant(name, groups, base)
    main = _grouped_branch(build, x, name, width, missing, stride, part, int(groups), kernel)
    return build.concat(side, build.activate(main))


def shuffle_v1_unit(
    build: Builder, x: SymbolicTensor, name: str, *, groups: Elastic, base: Elastic, kernel: Elastic
) -> SymbolicTensor:
    """Add ShuffleNetV1's unit (figure 2b): the input plus a branch of grouped convolutions."""
    name, g, c = _variant(name, groups, base), int(groups), x.shape[0]
    return build.activate(build.add(x, _grouped_branch(build, x, name, c, c, 1, g, g, kernel)))


def shuffle_v1_head(
    build: Builder, x: SymbolicTensor, name: str, *, groups: Elastic, base: Elastic
) -> SymbolicTensor:
    """Add a global mean and a linear layer, with weights of its own for each variant."""
    return linear_classifier(build, x, _variant(name, groups, base))


def _variant(name: str, groups: Elastic, base: Elastic) -> str:
    return f"{name}.g{int(groups)}_{int(base)}"


def _grouped_branch(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    width: int,
    out: int,
    stride: int,
    first_groups: int,
    groups: int,
    kernel: Elastic,
) -> SymbolicTensor:
    """Add a grouped 1x1, a channel shuffle, a depthwise and a grouped 1x1 convolution.

    The inner layers have a quarter of `width` channels. Behind a dense 1x1 convolution a shuffle
    would only rename channels, so there is none.
    """
    hidden = Elastic.of(width * 0.25).rounded(groups)
    x = build.conv_unit(x, f"{name}.expand", hidden, groups=first_groups)
    if first_groups > 1:
        x = build.shuffle(x, groups)
    x = build.depthwise_unit(x, f"{name}.depthwise", kernel=kernel, stride=stride, activate=False)
    return build.conv_unit(x, f"{name}.project", out, groups=groups, activate=False)
