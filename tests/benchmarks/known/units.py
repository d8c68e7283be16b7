"""Two stages of shuffle units of either kind."""

from nas.space import SearchSpace, Stage

SPACE = SearchSpace(
    name="units",
    image_size=16,
    channels=3,
    classes=10,
    smallest_map=2,
    stages=(
        Stage("stem", "conv", width=(8, 16), stride=2, per_stage={"kernel": 3}),
        Stage(
            "stage1",
            "shuffle_unit",
            width=(24, 40),
            depth=(1, 2, 3),
            stride=2,
            entry="shuffle_entry",
            per_stage={"unit": ("basic", "xception")},
            per_block={"kernel": (3, 5)},
        ),
        Stage(
            "stage2",
            "shuffle_unit",
            width=(48, 96),
            depth=(1, 2, 3),
            stride=2,
            entry="shuffle_entry",
            per_stage={"unit": ("basic", "xception")},
            per_block={"kernel": (3, 5)},
        ),
        Stage("head", "pool_classifier", width=(32, 96)),
    ),
)
