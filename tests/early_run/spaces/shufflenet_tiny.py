"""ShuffleNet style networks for images of 8 to 16 pixels and a table built within a minute."""

from nas.space import SearchSpace, Stage

SPACE = SearchSpace(
    name="shufflenet_tiny",
    activation="relu",
    image_size=8,
    channels=1,
    classes=10,
    stages=(
        Stage("stem", "conv", width=(8, 16), stride=1, per_stage={"kernel": 3}),
        Stage(
            "stage1",
            "shuffle_unit",
            width=(16, 32),
            depth=(1, 2, 3),
            stride=2,
            per_block={"unit": ("basic", "xception"), "kernel": 3},
            entry="shuffle_entry",
        ),
        Stage("head", "pool_classifier", width=(32, 64)),
    ),
)
