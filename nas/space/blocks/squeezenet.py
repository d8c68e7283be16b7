"""SqueezeNet blocks."""

from __future__ import annotations

from dataclasses import replace

from nas.errors import SpaceError
from nas.space.blocks.words import check_word
from nas.space.builder import Builder, Elastic, Tensor

_DIVISOR = 8


def fire(
    build: Builder,
    x: Tensor,
    name: str,
    *,
    width: Elastic,
    squeeze: Elastic,
    share3x3: Elastic,
    bypass: str = "none",
) -> Tensor:
    """The fire module (Iandola et al. 2016, section 3.2): squeeze 1x1, expand 1x1 beside 3x3.

    `width` counts the output channels, `squeeze` is the squeeze ratio (squeeze filters a filter of
    the expand layer) and `share3x3` the share of the expand layer's filters that are 3x3.

    `bypass` (section 6, figure 2) adds the input to the output: "simple" where the widths agree,
    "complex" also where they differ, through a 1x1 convolution without activation; "none" never.
    Each kind of bypass has weights of its own.
    """
    check_word("bypass", bypass, ("none", "simple", "complex"))
    if bypass != "none":
        name = f"{name}.{bypass}"
    wide3x3 = (width * share3x3).rounded(_DIVISOR)
    # What the 3x3 filters leave; rounding the 1x1 filters too would miss the width.
    left = replace(
        (width * share3x3.complement()).rounded(_DIVISOR), value=width.value - int(wide3x3)
    )
    if width.value % _DIVISOR or left.value < 1:
        raise SpaceError(
            f"Width {int(width)} and share {share3x3.value} leave {int(left.value)} 1x1 filters.",
            remedy=f"Use multiples of {_DIVISOR} as widths, and leave both kinds some filters.",
        )
    # Before the branch: the newest operand of an addition is the branch, which may start silent.
    bypassed = x
    if bypass == "complex" and x.shape[0] != int(width):
        bypassed = build.conv_unit(x, f"{name}.bypass", width, activate=False)
    squeezed = build.conv_unit(x, f"{name}.squeeze", (width * squeeze).rounded(_DIVISOR))
    small = build.conv_unit(squeezed, f"{name}.expand1x1", left)
    large = build.conv_unit(squeezed, f"{name}.expand3x3", wide3x3, kernel=3)
    y = build.concat(small, large)
    return build.add(y, bypassed) if bypass != "none" and bypassed.shape == y.shape else y
