"""ShuffleNet style networks for images of 32 pixels, on which no setting was chosen."""

from nas.space import SearchSpace, Stage

UNITS = {"block": "shuffle_unit", "entry": "shuffle_entry"}
BLOCK = {"unit": ("basic", "xception"), "kernel": (3, 5)}

SPACE = SearchSpace(
    name="shuffle_32",
    activation="relu",
    image_size=32,
    classes=10,
    stages=(
        Stage("stem", "conv", width=(16, 24), stride=1, per_stage={"kernel": 3}),
        Stage("stage1", **UNITS, width=(32, 48, 64), depth=(1, 2, 3), stride=2, per_block=BLOCK),
        Stage(
            "stage2", **UNITS, width=(64, 96, 128), depth=(1, 2, 3, 4), stride=2, per_block=BLOCK
        ),
        Stage("head", "pool_classifier", width=(128, 256)),
    ),
)
