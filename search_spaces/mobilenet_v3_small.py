"""MobileNetV3-Small style networks (Howard et al. 2019).

Each stage has a choice of activation and of squeeze-and-excitation. The expand ratios are those
that give the published hidden sizes: 4.5 * 16 = 72, 3.7 * 24 = 88.8.

Strides are those for 224 px. For smaller images the first strides become 1, one stage after
another, until the last map keeps `smallest_map` pixels a side.
"""

from nas.space import Reference, SearchSpace, Stage

BODY = {"block": "inverted_residual_v3", "entry": "linear_bottleneck_v3"}
OPERATORS = {"se": ("none", "se"), "activation": ("relu", "hard_swish")}
KERNEL = {"kernel": (3, 5)}

SPACE = SearchSpace(
    name="mobilenet_v3_small",
    smallest_map=3,
    activation="hard_swish",
    stages=(
        Stage("stem", "conv", width=16, stride=2, per_stage={"kernel": 3}),
        Stage(
            "stage1",
            "linear_bottleneck_v3",
            width=16,
            stride=2,
            per_stage={"expand": 1, "activation": "relu", "se": ("none", "se")},
            per_block=KERNEL,
        ),
        Stage(
            "stage2",
            **BODY,
            width=(16, 24),
            depth=(1, 2),
            stride=2,
            per_stage=OPERATORS,
            per_block={**KERNEL, "expand": (3, 3.7, 4.5)},
        ),
        Stage(
            "stage3",
            **BODY,
            width=(24, 32, 40),
            depth=(1, 2, 3),
            stride=2,
            per_stage=OPERATORS,
            per_block={**KERNEL, "expand": (3, 4, 6)},
        ),
        Stage(
            "stage4",
            **BODY,
            width=(24, 40, 48),
            depth=(1, 2),
            per_stage=OPERATORS,
            per_block={**KERNEL, "expand": (3, 4, 6)},
        ),
        Stage(
            "stage5",
            **BODY,
            width=(48, 72, 96),
            depth=(1, 2, 3),
            stride=2,
            per_stage=OPERATORS,
            per_block={**KERNEL, "expand": (3, 4, 6)},
        ),
        Stage(
            "head", "mobilenet_v3_head", width=(288, 432, 576), per_stage={"hidden": (512, 1024)}
        ),
    ),
    references=(
        Reference(
            "mobilenet_v3_small",
            {
                "*.width": (24, 40, 48, 96, 576),
                "*.depth": (2, 3, 2, 3),
                "*.kernel": (3, 3, 5, 5, 5),
                "*.se": ("se", "none", "se", "se", "se"),
                "*.activation": ("relu", "hard_swish", "hard_swish", "hard_swish"),
                "stage2.expand": (4.5, 3.7),
                "stage3.expand": (4, 6, 6),
                "stage4.expand": 3,
                "stage5.expand": 6,
                "head.hidden": 1024,
            },
            source="Howard et al. 2019, tables 2 and 3; parameters: torchvision 0.29",
            params=2_542_856,
            macs=56e6,
        ),
    ),
)
