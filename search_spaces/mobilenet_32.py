"""MobileNetV2 style networks (Sandler et al. 2018) for images of 24 to 64 pixels.

Training a supernet of this space takes an hour on a few processor cores.
"""

from nas.space import SearchSpace, Stage

BODY = {"block": "inverted_residual", "entry": "linear_bottleneck"}
BLOCK = {"kernel": (3, 5), "expand": (3, 6)}

SPACE = SearchSpace(
    name="mobilenet_32",
    activation="relu6",
    image_size=32,
    classes=10,
    stages=(
        Stage("stem", "conv", width=(8, 16), stride=1, per_stage={"kernel": 3}),
        Stage("stage1", **BODY, width=(16, 24), depth=(1, 2, 3), stride=2, per_block=BLOCK),
        Stage("stage2", **BODY, width=(24, 32, 48), depth=(1, 2, 3, 4), stride=2, per_block=BLOCK),
        Stage("stage3", **BODY, width=(48, 64, 96), depth=(1, 2, 3, 4), stride=2, per_block=BLOCK),
        Stage("head", "pool_classifier", width=(256, 512)),
    ),
)
