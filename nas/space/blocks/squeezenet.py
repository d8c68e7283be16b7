"""The block of SqueezeNet."""

from __future__ import annotations

from dataclasses import replace

from nas.errors import SpaceError
from nas.space.builder import Builder, SymbolicTensor, require_option
from nas.space.elastic import Elastic

_DIVISOR = 8
"""Numbers of filters are multiples of this, as in the published networks."""


def fire(
    build: Builder,
    x: SymbolicTensor,
    name: str,
    *,
    width: Elastic,
    squeeze: Elastic,
    share3x3: Elastic,
    bypass: str = "none",
) -> SymbolicTensor:
    """Add a fire module (Iandola et al. 2016, section 3.2): squeeze 1x1, expand 1x1 beside 3x3.

    `width` is the number of output channels, `squeeze` the ratio of squeeze filters to expand
    filters, and `share3x3` the fraction of the expand filters that are 3x3.

    `bypass` (section 6, figure 2) adds the input to the output: "simple" where the widths are
    equal, "complex" also where they differ, through a 1x1 convolution without activation; "none"
    nowhere. Each kind of bypass has weights of its own.
    """
    require_option("bypass", bypass, ("none", "simple", "complex"))
    if bypass != "none":
        name = f"{name}.{bypass}"
    wide3x3 = (width * share3x3).rounded(_DIVISOR)
    # The 1x1 filters are what the 3x3 filters leave: rounding both would miss the width.
    left = int(width) - int(wide3x3)
    if width.value % _DIVISOR or left < 1:
        raise SpaceError(
            f"Width {int(width)} and share3x3 {share3x3.value} leave {left} 1x1 filters.",
            remedy=f"Use multiples of {_DIVISOR} as widths, and leave both kinds some filters.",
        )
    wide1x1 = replace((width * share3x3.complement()).rounded(_DIVISOR), value=left)
    # The bypass is added before the branch, so that the newest operand of the addition is the
    # branch: a supernet may start the last norm of the branch at zero.
    bypassed = x
    if bypass == "complex" and x.shape[0] != int(width):
        bypassed = build.conv_unit(x, f"{name}.bypass", width, activate=False)
    squeezed = build.conv_unit(x, f"{name}.squeeze", (width * squeeze).rounded(_DIVISOR))
    pixelwise = build.conv_unit(squeezed, f"{name}.expand1x1", wide1x1)
    spatial = build.conv_unit(squeezed, f"{name}.expand3x3", wide3x3, kernel=3)
    y = build.concat(pixelwise, spatial)
    return build.add(y, bypassed) if bypass != "none" and bypassed.shape == y.shape else y
