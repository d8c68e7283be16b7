"""Small graphs for tests, at least one for each way in which blocks fuse."""

from __future__ import annotations

from collections.abc import Callable

from nas.graph import Graph, Op, Slot
from nas.space.builder import Builder


def inverted_residual(
    channels: int = 24, size: int = 9, stride: int = 1, expand: str = "expand"
) -> Graph:
    build = Builder((channels, size, size), norm=True, activation="relu6", classes=10)
    x = build.conv_unit(build.input, expand, 3 * channels)
    x = build.depthwise_unit(x, "depthwise", kernel=3, stride=stride)
    x = build.conv_unit(x, "project", channels, activate=False)
    if stride == 1:
        x = build.add(build.input, x)
    return build.graph()


def three_kernels(channels: int = 24, size: int = 9, stride: int = 1) -> Graph:
    """Return an inverted residual of three kernels: its 1x1 expansion belongs to another block."""
    return inverted_residual(channels, size, stride, expand="before.expand")


def shuffle_unit(channels: int = 58, size: int = 7) -> Graph:
    """Return the basic unit of ShuffleNetV2 (Ma et al. 2018, figure 3c)."""
    build = Builder((2 * channels, size, size), norm=True, activation="relu", classes=10)
    left, x = build.split(build.input)
    x = build.conv_unit(x, "first", channels)
    x = build.depthwise_unit(x, "depthwise", kernel=3, activate=False)
    x = build.conv_unit(x, "second", channels)
    build.shuffle(build.concat(left, x), 2)
    return build.graph()


def shuffle_unit_twice() -> Graph:
    build = Builder((20, 6, 6), norm=True, activation="relu", classes=10)
    x = build.input
    for index in range(2):
        left, x = build.split(x)
        x = build.conv_unit(x, f"{index}.first", 10)
        x = build.depthwise_unit(x, f"{index}.depthwise", kernel=5, activate=False)
        x = build.conv_unit(x, f"{index}.second", 10)
        x = build.shuffle(build.concat(left, x), 2)
    return build.graph()


def shuffle_downsampling(channels: int = 24, out: int = 58, size: int = 9) -> Graph:
    """Return the downsampling unit of ShuffleNetV2 (figure 3d)."""
    build = Builder((channels, size, size), norm=True, activation="relu", classes=10)
    left = build.depthwise_unit(build.input, "left", kernel=3, stride=2, activate=False)
    left = build.conv_unit(left, "left.out", out)
    right = build.conv_unit(build.input, "right.in", out)
    right = build.depthwise_unit(right, "right", kernel=3, stride=2, activate=False)
    right = build.conv_unit(right, "right.out", out)
    build.shuffle(build.concat(left, right), 2)
    return build.graph()


def fire(channels: int = 13, size: int = 7) -> Graph:
    """Return the fire module of SqueezeNet (Iandola et al. 2016), without normalisation."""
    build = Builder((channels, size, size), norm=False, activation="relu", classes=10)
    squeezed = build.conv_unit(build.input, "squeeze", 6)
    small = build.conv_unit(squeezed, "small", 21)
    large = build.conv_unit(squeezed, "large", 17, kernel=3)
    build.max_pool(build.concat(small, large), "pool", kernel=3, stride=2)
    return build.graph()


def classifier() -> Graph:
    build = Builder((10, 5, 5), norm=True, activation="relu", classes=10)
    x = build.conv_unit(build.input, "last", 70)
    build.linear(build.global_pool(x), "linear", 11)
    return build.graph()


def squeezenet_head() -> Graph:
    build = Builder((12, 4, 4), norm=False, activation="relu", classes=10)
    build.global_pool(build.conv_unit(build.input, "classes", 10))
    return build.graph()


def stem() -> Graph:
    build = Builder((3, 17, 17), norm=True, activation="relu", classes=10)
    x = build.conv_unit(build.input, "stem", 20, kernel=3, stride=2)
    build.max_pool(x, "pool", kernel=3, stride=2)
    return build.graph()


def residual_branches() -> Graph:
    """Return an addition of two convolutions, neither of which anything else reads."""
    build = Builder((8, 6, 6), norm=True, activation="relu", classes=10)
    short = build.conv_unit(build.input, "short", 16, kernel=1, activate=False)
    long = build.conv_unit(build.input, "long", 16, kernel=5, activate=False)
    build.activate(build.add(short, long))
    return build.graph()


def grouped() -> Graph:
    """Return a branch of ShuffleNetV1: grouped, shuffle, depthwise and grouped convolution."""
    slot = [Slot(name, None, None) for name in ("one", "two", "three")]  # type: ignore[arg-type]
    return Graph(
        (
            Op("input", (), (24, 6, 6)),
            Op("conv", (0,), (36, 6, 6), groups=3, bias=True, slot=slot[0]),
            Op("relu", (1,), (36, 6, 6)),
            Op("shuffle", (2,), (36, 6, 6), groups=3),
            Op("conv", (3,), (36, 3, 3), 3, 2, 1, 36, True, slot=slot[1]),
            Op("conv", (4,), (60, 3, 3), 3, 1, 1, 3, False, slot=slot[2]),
        )
    )


def slices_and_sums() -> Graph:
    """Return nested slices, additions of slices and of a tensor to itself, and a sliced output."""
    return Graph(
        (
            Op("input", (), (40, 5, 5)),
            Op("slice", (0,), (30, 5, 5), start=10),
            Op("slice", (1,), (14, 5, 5), start=3),
            Op("slice", (0,), (14, 5, 5), start=26),
            Op("add", (2, 3), (14, 5, 5)),
            Op("add", (4, 4), (14, 5, 5)),
            Op("concat", (5, 2, 3), (42, 5, 5)),
            Op("shuffle", (6,), (42, 5, 5), groups=2),
            Op("slice", (7,), (9, 5, 5), start=5),
        )
    )


def squeeze_excite(channels: int = 24, size: int = 9, stride: int = 1) -> Graph:
    """Return the block of MobileNetV3 (Howard et al. 2019, figure 4)."""
    build = Builder((channels, size, size), norm=True, activation="hard_swish", classes=10)
    x = build.conv_unit(build.input, "expand", 3 * channels)
    x = build.depthwise_unit(x, "depthwise", kernel=5, stride=stride)
    gate = build.conv(build.global_pool(x), "reduce", channels, bias=True)
    gate = build.conv(build.activate(gate, "relu"), "restore", 3 * channels, bias=True)
    x = build.multiply(x, build.activate(gate, "hard_sigmoid"))
    x = build.conv_unit(x, "project", channels, activate=False)
    if stride == 1:
        build.add(build.input, x)
    return build.graph()


def gates() -> Graph:
    """Return gates that are computed before and after the tensors they scale, and sliced gates."""
    build = Builder((12, 5, 5), norm=True, activation="relu", classes=10)
    pooled = build.global_pool(build.input)
    before = build.activate(build.conv(pooled, "before", 20), "hard_sigmoid")
    x = build.multiply(build.conv_unit(build.input, "one", 20, activate="hard_swish"), before)
    x = build.activate(x, "relu6")
    y = build.conv_unit(x, "two", 20, kernel=3, activate=False)
    low, high = build.split(build.conv(build.global_pool(x), "after", 40))
    y = build.activate(build.add(x, build.multiply(y, high)), "hard_swish")
    left, right = build.split(y)
    spare, gate = build.split(low)
    gated = build.activate(build.multiply(right, gate))
    scaled = build.multiply(gate, build.activate(gate, "hard_swish"))
    build.multiply(build.concat(build.add(gated, left), gated), build.concat(scaled, spare))
    return build.graph()


def shuffle_v1_unit(channels: int = 60, groups: int = 3, size: int = 6) -> Graph:
    """Return the unit of ShuffleNetV1 (Zhang et al. 2018, figure 2b)."""
    build = Builder((channels, size, size), norm=True, activation="relu", classes=10)
    x = build.conv_unit(build.input, "reduce", channels // 4, groups=groups)
    x = build.depthwise_unit(build.shuffle(x, groups), "depthwise", kernel=3, activate=False)
    x = build.conv_unit(x, "restore", channels, groups=groups, activate=False)
    build.activate(build.add(build.input, x))
    return build.graph()


def shuffle_v1_downsampling(
    channels: int = 24, out: int = 60, groups: int = 3, size: int = 7
) -> Graph:
    """Return the first unit of a ShuffleNetV1 (figure 2c), whose 1x1 convolution is dense."""
    build = Builder((channels, size, size), norm=True, activation="relu", classes=10)
    side = build.avg_pool(build.input, "pool", kernel=3, stride=2)
    x = build.conv_unit(build.input, "reduce", out // 4)
    x = build.depthwise_unit(x, "depthwise", kernel=3, stride=2, activate=False)
    x = build.conv_unit(x, "restore", out - channels, groups=groups)
    build.concat(side, x)
    return build.graph()


def fire_with_bypass(channels: int = 13, out: int = 38) -> Graph:
    """Return a fire module with a bypass, a convolution if the widths differ (figure 2)."""
    build = Builder((channels, 7, 7), norm=False, activation="relu", classes=10)
    bypass = build.input
    if channels != out:
        bypass = build.conv_unit(bypass, "bypass", out, activate=False)
    squeezed = build.conv_unit(build.input, "squeeze", 6)
    small = build.conv_unit(squeezed, "small", 21)
    large = build.conv_unit(squeezed, "large", out - 21, kernel=3)
    build.conv_unit(build.add(build.concat(small, large), bypass), "next", 8)
    return build.graph()


def unpadded_stem(height: int = 33, width: int = 33) -> Graph:
    """Return the stem of SqueezeNet, where only the last pooling window exceeds the image."""
    build = Builder((3, height, width), norm=False, activation="relu", classes=10)
    x = build.conv_unit(build.input, "stem", 20, kernel=7, stride=2, padding="valid")
    build.max_pool(x, "pool", kernel=3, stride=2, padding="valid")
    return build.graph()


def hidden_classifier() -> Graph:
    """Return the last stage of MobileNetV3 (figure 5)."""
    build = Builder((10, 5, 5), norm=True, activation="hard_swish", classes=10)
    x = build.global_pool(build.conv_unit(build.input, "last", 70))
    build.linear(build.activate(build.linear(x, "hidden", 33)), "linear", 11)
    return build.graph()


GRAPHS: dict[str, Callable[[], Graph]] = {
    "inverted_residual": inverted_residual,
    "strided": lambda: inverted_residual(16, 8, 2),
    "shuffle_unit": shuffle_unit,
    "shuffle_unit_twice": shuffle_unit_twice,
    "shuffle_downsampling": shuffle_downsampling,
    "fire": fire,
    "classifier": classifier,
    "squeezenet_head": squeezenet_head,
    "stem": stem,
    "residual_branches": residual_branches,
    "grouped": grouped,
    "slices_and_sums": slices_and_sums,
    "squeeze_excite": squeeze_excite,
    "squeeze_excite_strided": lambda: squeeze_excite(16, 8, 2),
    "gates": gates,
    "shuffle_v1_unit": shuffle_v1_unit,
    "shuffle_v1_unit_of_8_groups": lambda: shuffle_v1_unit(96, 8, 4),
    "shuffle_v1_downsampling": shuffle_v1_downsampling,
    "fire_with_simple_bypass": lambda: fire_with_bypass(38),
    "fire_with_complex_bypass": fire_with_bypass,
    "unpadded_stem": unpadded_stem,
    "unpadded_stem_overhanging_below": lambda: unpadded_stem(33, 31),
    "unpadded_stem_overhanging_at_the_right": lambda: unpadded_stem(31, 33),
    "hidden_classifier": hidden_classifier,
}
