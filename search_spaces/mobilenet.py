"""MobileNetV2 style networks (Sandler et al. 2018): inverted residuals, elastic in every stage."""

from nas.space import SearchSpace, Stage

BLOCK = {"kernel": (3, 5), "expand": (3, 6)}

SPACE = SearchSpace(
    name="mobilenet",
    activation="relu6",
    stages=(
        Stage("stem", "conv", width=(16, 32), stride=2, per_stage={"kernel": 3}),
        Stage("stage1", "inverted_residual", width=16, per_stage={"kernel": (3, 5), "expand": 1}),
        Stage("stage2", "inverted_residual", (16, 24), (1, 2), 2, per_block=BLOCK),
        Stage("stage3", "inverted_residual", (24, 32), (1, 2, 3), 2, per_block=BLOCK),
        Stage("stage4", "inverted_residual", (48, 64), (1, 2, 3, 4), 2, per_block=BLOCK),
        Stage("stage5", "inverted_residual", (72, 96), (1, 2, 3), 1, per_block=BLOCK),
        Stage("stage6", "inverted_residual", (120, 160), (1, 2, 3), 2, per_block=BLOCK),
        Stage("stage7", "inverted_residual", (240, 320), 1, 1, per_block=BLOCK),
        Stage("head", "pool_classifier", width=(640, 1280)),
    ),
)
