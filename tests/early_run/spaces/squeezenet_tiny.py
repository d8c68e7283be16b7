"""SqueezeNet style networks for images of 8 to 16 pixels and a table built within a minute."""

from nas.space import SearchSpace, Stage

SPACE = SearchSpace(
    name="squeezenet_tiny",
    activation="relu",
    image_size=8,
    channels=1,
    classes=10,
    stages=(
        Stage("stem", "conv", width=(4, 8, 16), stride=1, per_stage={"kernel": 3}),
        Stage("pool", "max_pool", stride=2, per_stage={"kernel": 3}),
        Stage(
            "stage1",
            "fire",
            width=(16, 32, 64),
            depth=(1, 2, 3, 4),
            per_block={"squeeze": (0.125, 0.25, 0.5), "share3x3": (0.25, 0.5)},
        ),
        Stage("head", "conv_classifier"),
    ),
)
