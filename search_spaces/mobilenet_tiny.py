"""MobileNet style networks for images of 8 to 16 pixels and a table built within a minute."""

from nas.space import SearchSpace, Stage

SPACE = SearchSpace(
    name="mobilenet_tiny",
    activation="relu6",
    stages=(
        Stage("stem", "conv", width=(8, 16), stride=1, per_stage={"kernel": 3}),
        Stage(
            "stage1",
            "inverted_residual",
            width=(8, 16),
            depth=(1, 2),
            stride=2,
            per_block={"kernel": (3, 5), "expand": (1, 3)},
        ),
        Stage(
            "stage2",
            "inverted_residual",
            width=24,
            depth=(1, 2),
            per_block={"kernel": 3, "expand": (1, 3)},
        ),
        Stage("head", "pool_classifier", width=48),
    ),
)
