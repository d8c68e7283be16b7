"""ShuffleNetV1 style networks (Zhang et al. 2018): grouped 1x1 convolutions and channel shuffle.

The groups and the widths that go with them are one choice for the whole network, as in the paper.

Strides are those for 224 px. For smaller images the first strides become 1, one stage after
another, until the last map keeps `smallest_map` pixels a side.
"""

from nas.space import Reference, SearchSpace, Stage

BODY = {"block": "shuffle_v1_unit", "entry": "shuffle_v1_entry"}
KERNEL = {"kernel": (3, 5, 7)}


def published(variant: str, params: int, macs: float) -> Reference:
    """Return the network of the paper's table 1 with a number of groups: 16 units, kernels of 3.

    The paper counts the MACs of the convolutions, rounded to millions. This package also counts the
    linear layer, which has up to 1.5 million, 1.1%. Parameters are those of the authors' code
    (megvii-model/ShuffleNet-Series) plus the 1,000 biases of the classifier, which it lacks.
    """
    return Reference(
        f"shufflenet_v1_{variant}",
        {"variant": variant, "*.depth": (4, 8, 4), "*.kernel": 3},
        source="Zhang et al. 2018, tables 1 and 2; github.com/megvii-model/ShuffleNet-Series",
        params=params,
        macs=macs,
        tolerance=0.012,
    )


SPACE = SearchSpace(
    name="shufflenet_v1",
    smallest_map=3,
    activation="relu",
    choices={
        "variant": {
            "g1": {"groups": 1, "base": 144},
            "g2": {"groups": 2, "base": 200},
            "g3": {"groups": 3, "base": 240},
            "g4": {"groups": 4, "base": 272},
            "g8": {"groups": 8, "base": 384},
        }
    },
    stages=(
        Stage("stem", "conv", width=24, stride=2, per_stage={"kernel": 3}),
        Stage("pool", "max_pool", stride=2, per_stage={"kernel": 3}),
        Stage(
            "stage2",
            **BODY,
            depth=(1, 2, 3, 4),
            stride=2,
            per_stage={"multiple": 1, "first": "dense"},
            per_block=KERNEL,
        ),
        Stage(
            "stage3",
            **BODY,
            depth=(2, 3, 4, 5, 6, 7, 8),
            stride=2,
            per_stage={"multiple": 2},
            per_block=KERNEL,
        ),
        Stage(
            "stage4",
            **BODY,
            depth=(1, 2, 3, 4),
            stride=2,
            per_stage={"multiple": 4},
            per_block=KERNEL,
        ),
        Stage("head", "shuffle_v1_head"),
    ),
    references=(
        published("g1", params=1_531_936, macs=143e6),
        published("g2", params=1_733_848, macs=140e6),
        published("g3", params=1_865_728, macs=137e6),
        published("g4", params=1_968_344, macs=133e6),
        published("g8", params=2_434_768, macs=137e6),
    ),
)
