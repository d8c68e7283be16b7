"""A space of two stages of shuffle units, each stage of one of two kinds."""

from nas.space import SearchSpace, Stage

BODY = {
    "block": "shuffle_unit",
    "entry": "shuffle_entry",
    "depth": (1, 2, 3),
    "stride": 2,
    "per_stage": {"unit": ("basic", "xception")},
    "per_block": {"kernel": (3, 5)},
}

SPACE = SearchSpace(
    name="units",
    image_size=16,
    channels=3,
    classes=10,
    smallest_map=2,
    stages=(
        Stage("stem", "conv", width=(8, 16), stride=2, per_stage={"kernel": 3}),
        Stage("stage1", **BODY, width=(24, 40)),
        Stage("stage2", **BODY, width=(48, 96)),
        Stage("head", "pool_classifier", width=(32, 96)),
    ),
)
