"""ShuffleNetV2 style networks (Ma et al. 2018), with Single Path One-Shot's units.

A unit is the basic one, with a kernel of 3, 5 or 7, or the "xception" one.
"""

from nas.space import SearchSpace, Stage

UNIT = {"unit": ("basic", "xception"), "kernel": (3, 5, 7)}

SPACE = SearchSpace(
    name="shufflenet",
    activation="relu",
    stages=(
        Stage("stem", "conv", width=(16, 24), stride=2, per_stage={"kernel": 3}),
        Stage("pool", "max_pool", stride=2, per_stage={"kernel": 3}),
        Stage(
            "stage2", "shuffle_unit", (48, 116), (2, 3, 4), 2, per_block=UNIT, entry="shuffle_entry"
        ),
        Stage(
            "stage3", "shuffle_unit", (96, 232), (4, 6, 8), 2, per_block=UNIT, entry="shuffle_entry"
        ),
        Stage(
            "stage4",
            "shuffle_unit",
            (192, 464),
            (2, 3, 4),
            2,
            per_block=UNIT,
            entry="shuffle_entry",
        ),
        Stage("head", "pool_classifier", width=(512, 1024)),
    ),
)
