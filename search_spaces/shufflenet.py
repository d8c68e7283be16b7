"""ShuffleNetV2 style networks (Ma et al. 2018), with Single Path One-Shot's units.

A unit is "basic", with a kernel of 3, 5 or 7, or "xception". The widths are those of the four
published networks, whose parameters are those of torchvision 0.29.

Strides are those for 224 px. For smaller images the first strides become 1, one stage after
another, until the last map keeps `smallest_map` pixels a side.
"""

from nas.space import Reference, SearchSpace, Stage

BODY = {"block": "shuffle_unit", "entry": "shuffle_entry"}
UNIT = {"unit": ("basic", "xception"), "kernel": (3, 5, 7)}


def published(multiplier: float, widths: tuple[int, ...], params: int, macs: float) -> Reference:
    """Return the network of the paper's table 5: 16 basic units, kernels of 3.

    The paper's MACs are up to 1.4% above those of the layers in that table. This package and
    torchvision count 40, 145, 296 and 583 million.
    """
    return Reference(
        f"shufflenet_v2_{multiplier}",
        {"*.width": (24, *widths), "*.depth": (4, 8, 4), "*.unit": "basic", "*.kernel": 3},
        source="Ma et al. 2018, tables 5 and 8",
        params=params,
        macs=macs,
        tolerance=0.014,
    )


SPACE = SearchSpace(
    name="shufflenet",
    smallest_map=3,
    activation="relu",
    stages=(
        Stage("stem", "conv", width=(16, 24), stride=2, per_stage={"kernel": 3}),
        Stage("pool", "max_pool", stride=2, per_stage={"kernel": 3}),
        Stage(
            "stage2",
            **BODY,
            width=(48, 116, 176, 244),
            depth=(2, 3, 4),
            stride=2,
            per_block=UNIT,
        ),
        Stage(
            "stage3",
            **BODY,
            width=(96, 232, 352, 488),
            depth=(4, 6, 8),
            stride=2,
            per_block=UNIT,
        ),
        Stage(
            "stage4",
            **BODY,
            width=(192, 464, 704, 976),
            depth=(2, 3, 4),
            stride=2,
            per_block=UNIT,
        ),
        Stage("head", "pool_classifier", width=(512, 1024, 2048)),
    ),
    references=(
        published(0.5, (48, 96, 192, 1024), params=1_366_792, macs=41e6),
        published(1.0, (116, 232, 464, 1024), params=2_278_604, macs=146e6),
        published(1.5, (176, 352, 704, 1024), params=3_503_624, macs=299e6),
        published(2.0, (244, 488, 976, 2048), params=7_393_996, macs=591e6),
    ),
)
