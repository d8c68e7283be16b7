"""MobileNetV2 style networks (Sandler et al. 2018): inverted residuals, elastic in every stage."""

from nas.space import SearchSpace, Stage

BODY = {"block": "inverted_residual", "entry": "linear_bottleneck"}
BLOCK = {"kernel": (3, 5), "expand": (3, 6)}

SPACE = SearchSpace(
    name="mobilenet",
    activation="relu6",
    stages=(
        Stage("stem", "conv", width=(16, 32), stride=2, per_stage={"kernel": 3}),
        Stage("stage1", "linear_bottleneck", 16, per_stage={"kernel": (3, 5), "expand": 1}),
        Stage("stage2", **BODY, width=(16, 24), depth=(1, 2), stride=2, per_block=BLOCK),
        Stage("stage3", **BODY, width=(24, 32), depth=(1, 2, 3), stride=2, per_block=BLOCK),
        Stage("stage4", **BODY, width=(48, 64), depth=(1, 2, 3, 4), stride=2, per_block=BLOCK),
        Stage("stage5", **BODY, width=(72, 96), depth=(1, 2, 3), per_block=BLOCK),
        Stage("stage6", **BODY, width=(120, 160), depth=(1, 2, 3), stride=2, per_block=BLOCK),
        Stage("stage7", **BODY, width=(240, 320), per_block=BLOCK),
        Stage("head", "pool_classifier", width=(640, 1280)),
    ),
)
