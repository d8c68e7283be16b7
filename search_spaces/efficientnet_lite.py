"""EfficientNet-Lite0 style networks (Liu 2020): inverted residuals with kernels of 3 and 5.

EfficientNet-Lite is EfficientNet (Tan and Le 2019) without squeeze-and-excitation and with ReLU6.
The widest and deepest networks of the space have Lite0's table, so that Lite0 lies inside of the
largest one; the other widths are half and three quarters of it. Lite1 to Lite4 are in
`efficientnet_lite_large`. The authors' README has 407M MAdds for Lite0, 6% above its layers.

Strides are those for 224 px. For smaller images the first strides become 1, one stage after
another, until the last map keeps `smallest_map` pixels a side.
"""

from nas.space import Reference, SearchSpace, Stage

BODY = {"block": "inverted_residual", "entry": "linear_bottleneck"}
BLOCK = {"kernel": (3, 5), "expand": (3, 6)}

SPACE = SearchSpace(
    name="efficientnet_lite",
    smallest_map=3,
    activation="relu6",
    stages=(
        Stage("stem", "conv", width=(16, 24, 32), stride=2, per_stage={"kernel": 3}),
        Stage(
            "stage1",
            "linear_bottleneck",
            width=(8, 16),
            per_stage={"expand": 1},
            per_block={"kernel": (3, 5)},
        ),
        Stage("stage2", **BODY, width=(16, 24), depth=(1, 2), stride=2, per_block=BLOCK),
        Stage("stage3", **BODY, width=(24, 32, 40), depth=(1, 2), stride=2, per_block=BLOCK),
        Stage("stage4", **BODY, width=(40, 64, 80), depth=(1, 2, 3), stride=2, per_block=BLOCK),
        Stage("stage5", **BODY, width=(56, 88, 112), depth=(1, 2, 3), per_block=BLOCK),
        Stage(
            "stage6",
            **BODY,
            width=(96, 144, 192),
            depth=(1, 2, 3, 4),
            stride=2,
            per_block=BLOCK,
        ),
        Stage("stage7", **BODY, width=(160, 240, 320), per_block=BLOCK),
        Stage("head", "pool_classifier", width=(640, 960, 1280)),
    ),
    references=(
        Reference(
            "efficientnet_lite0",
            {
                "*.width": (32, 16, 24, 40, 80, 112, 192, 320, 1280),
                "*.depth": (2, 2, 3, 3, 4),
                "*.kernel": (3, 3, 5, 3, 5, 5, 3),
                "*.expand": 6,
            },
            source="github.com/tensorflow/tpu, models/official/efficientnet/lite; "
            "parameters: timm 1.0",
            params=4_652_008,
        ),
    ),
)
