"""MobileNetV1 style networks (Howard et al. 2017): separable convolutions.

The resolution is a choice too: the paper's resolution multiplier, 128 to 224 of 224 pixels. The
paper's activation is ReLU; the networks that its authors published (TF-slim) and this space have
ReLU6. The paper rounds the parameters to 4.2, 2.6, 1.3 and 0.5 million; the references have the
exact numbers of timm 1.0.

Strides are those for 224 px. For smaller images the first strides become 1, one stage after
another, until the last map keeps `smallest_map` pixels a side.
"""

from nas.space import Reference, SearchSpace, Stage

KERNEL = {"kernel": (3, 5, 7)}
PAPER = "Howard et al. 2017, tables 6 and 7"
FULL = (32, 64, 128, 256, 512, 1024)


def published(
    name: str, widths: tuple[int, ...], params: int, macs: float, pixels: int = 224
) -> Reference:
    """Return the network with a width and a resolution multiplier: 13 blocks, kernels of 3."""
    return Reference(
        f"mobilenet_v1_{name}",
        {"*.width": widths, "*.kernel": 3, "*.depth": (2, 2, 6, 2)},
        source=PAPER,
        params=params,
        macs=macs,
        resolution=pixels / 224,
    )


SPACE = SearchSpace(
    name="mobilenet_v1",
    smallest_map=3,
    activation="relu6",
    resolutions=(128 / 224, 160 / 224, 192 / 224, 1.0),
    stages=(
        Stage("stem", "conv", width=(8, 16, 24, 32), stride=2, per_stage={"kernel": 3}),
        Stage("stage1", "separable", (16, 32, 48, 64), per_block=KERNEL),
        Stage("stage2", "separable", (32, 64, 96, 128), (1, 2), 2, per_block=KERNEL),
        Stage("stage3", "separable", (64, 128, 192, 256), (1, 2, 3), 2, per_block=KERNEL),
        Stage("stage4", "separable", (128, 256, 384, 512), (2, 3, 4, 5, 6), 2, per_block=KERNEL),
        Stage("stage5", "separable", (256, 512, 768, 1024), (1, 2), 2, per_block=KERNEL),
        Stage("head", "linear_classifier"),
    ),
    references=(
        published("0.25", (8, 16, 32, 64, 128, 256), params=470_072, macs=41e6),
        published("0.5", (16, 32, 64, 128, 256, 512), params=1_331_592, macs=149e6),
        published("0.75", (24, 48, 96, 192, 384, 768), params=2_585_560, macs=325e6),
        published("1.0", FULL, params=4_231_976, macs=569e6),
        published("1.0_192", FULL, params=4_231_976, macs=418e6, pixels=192),
        published("1.0_160", FULL, params=4_231_976, macs=290e6, pixels=160),
        published("1.0_128", FULL, params=4_231_976, macs=186e6, pixels=128),
    ),
)
