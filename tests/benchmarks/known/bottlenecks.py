"""A space of two stages of inverted residuals, with all choices of MobileNets."""

from nas.space import SearchSpace, Stage

BODY = {"block": "inverted_residual", "entry": "linear_bottleneck"}
BLOCK = {"kernel": (3, 5), "expand": (2, 4)}

SPACE = SearchSpace(
    name="bottlenecks",
    activation="relu6",
    image_size=16,
    channels=3,
    classes=10,
    smallest_map=2,
    stages=(
        Stage("stem", "conv", width=(8, 16), stride=2, per_stage={"kernel": 3}),
        Stage("stage1", **BODY, width=(8, 12, 16), depth=(1, 2), stride=2, per_block=BLOCK),
        Stage("stage2", **BODY, width=(16, 24, 40), depth=(1, 2), stride=2, per_block=BLOCK),
        Stage("head", "pool_classifier", width=(32, 64)),
    ),
)
