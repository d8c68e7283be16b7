"""MobileNet style networks for images of 8 to 16 pixels and a table built within a minute."""

from nas.space import SearchSpace, Stage

SPACE = SearchSpace(
    name="mobilenet_tiny",
    activation="relu6",
    image_size=8,
    channels=1,
    classes=10,
    stages=(
        Stage("stem", "conv", width=(4, 8, 16), stride=1, per_stage={"kernel": 3}),
        Stage(
            "stage1",
            "inverted_residual",
            entry="linear_bottleneck",
            width=(8, 16, 32),
            depth=(1, 2, 3, 4),
            stride=2,
            per_block={"kernel": 3, "expand": (1, 3)},
        ),
        Stage("head", "linear_classifier"),
    ),
)
