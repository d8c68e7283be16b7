"""SqueezeNet style networks (Iandola et al. 2016): fire modules with elastic ratios.

The published network has no batch norm; its supernet needs it, so the space has it.
"""

from nas.space import SearchSpace, Stage

FIRE = {"squeeze": (0.125, 0.25), "share3x3": (0.25, 0.5, 0.75)}

SPACE = SearchSpace(
    name="squeezenet",
    activation="relu",
    stages=(
        Stage("stem", "conv", width=(32, 64), stride=2, per_stage={"kernel": 3}),
        Stage("pool1", "max_pool", stride=2, per_stage={"kernel": 3}),
        Stage("stage2", "fire", (64, 128), (1, 2), per_block=FIRE),
        Stage("pool2", "max_pool", stride=2, per_stage={"kernel": 3}),
        Stage("stage3", "fire", (128, 256), (1, 2), per_block=FIRE),
        Stage("pool3", "max_pool", stride=2, per_stage={"kernel": 3}),
        Stage("stage4", "fire", (192, 384), (1, 2), per_block=FIRE),
        Stage("stage5", "fire", (256, 512), (1, 2), per_block=FIRE),
        Stage("head", "conv_classifier"),
    ),
)
