"""MobileNetV2 style networks (Sandler et al. 2018): inverted residuals, with choices in all stages.

The widths are those of the published width multipliers, so that all six networks are in the space.
Parameters are those of torchvision 0.29 and timm 1.0, MACs those of the authors' README.

Strides are those for 224 px. For smaller images the first strides become 1, one stage after
another, until the last map keeps `smallest_map` pixels a side.
"""

from nas.space import Reference, SearchSpace, Stage

BODY = {"block": "inverted_residual", "entry": "linear_bottleneck"}
BLOCK = {"kernel": (3, 5, 7), "expand": (3, 6)}
SLIM = "Sandler et al. 2018; TF-slim, research/slim/nets/mobilenet/README.md"


def published(multiplier: float, widths: tuple[int, ...], params: int, macs: float) -> Reference:
    """Return the network with a width multiplier: 17 blocks, kernels of 3, expand ratios of 6."""
    return Reference(
        f"mobilenet_v2_{multiplier}",
        {"*.width": widths, "*.depth": (2, 3, 4, 3, 3), "*.kernel": 3, "*.expand": 6},
        source=SLIM,
        params=params,
        macs=macs,
    )


SPACE = SearchSpace(
    name="mobilenet",
    smallest_map=3,
    activation="relu6",
    stages=(
        Stage("stem", "conv", width=(16, 24, 32, 40, 48), stride=2, per_stage={"kernel": 3}),
        Stage(
            "stage1",
            "linear_bottleneck",
            width=(8, 16, 24),
            per_stage={"expand": 1},
            per_block={"kernel": (3, 5, 7)},
        ),
        Stage("stage2", **BODY, width=(8, 16, 24, 32), depth=(1, 2), stride=2, per_block=BLOCK),
        Stage(
            "stage3",
            **BODY,
            width=(16, 24, 32, 40, 48),
            depth=(1, 2, 3),
            stride=2,
            per_block=BLOCK,
        ),
        Stage(
            "stage4",
            **BODY,
            width=(24, 32, 48, 64, 80, 88),
            depth=(1, 2, 3, 4),
            stride=2,
            per_block=BLOCK,
        ),
        Stage(
            "stage5",
            **BODY,
            width=(32, 48, 72, 96, 128, 136),
            depth=(1, 2, 3),
            per_block=BLOCK,
        ),
        Stage(
            "stage6",
            **BODY,
            width=(56, 80, 120, 160, 208, 224),
            depth=(1, 2, 3),
            stride=2,
            per_block=BLOCK,
        ),
        Stage("stage7", **BODY, width=(112, 160, 240, 320, 416, 448), per_block=BLOCK),
        Stage("head", "pool_classifier", width=(640, 1280, 1664, 1792)),
    ),
    references=(
        published(0.35, (16, 8, 8, 16, 24, 32, 56, 112, 1280), params=1_677_128, macs=59e6),
        published(0.5, (16, 8, 16, 16, 32, 48, 80, 160, 1280), params=1_968_680, macs=97e6),
        published(0.75, (24, 16, 24, 24, 48, 72, 120, 240, 1280), params=2_636_424, macs=209e6),
        published(1.0, (32, 16, 24, 32, 64, 96, 160, 320, 1280), params=3_504_872, macs=300e6),
        published(1.3, (40, 24, 32, 40, 80, 128, 208, 416, 1664), params=5_386_792, macs=509e6),
        published(1.4, (48, 24, 32, 48, 88, 136, 224, 448, 1792), params=6_108_776, macs=582e6),
    ),
)
