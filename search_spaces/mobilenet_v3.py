"""MobileNetV3-Large style networks (Howard et al. 2019).

Each stage has a choice of activation and of squeeze-and-excitation. The expand ratios are those
that give the published hidden sizes: 2.3 * 80 = 184, 2.5 * 80 = 200.

Strides are those for 224 px. For smaller images the first strides become 1, one stage after
another, until the last map keeps `smallest_map` pixels a side.
"""

from nas.space import Reference, SearchSpace, Stage

BODY = {"block": "inverted_residual_v3", "entry": "linear_bottleneck_v3"}
OPERATORS = {"se": ("none", "se"), "activation": ("relu", "hard_swish")}
KERNEL = {"kernel": (3, 5)}

SPACE = SearchSpace(
    name="mobilenet_v3",
    smallest_map=3,
    activation="hard_swish",
    stages=(
        Stage("stem", "conv", width=16, stride=2, per_stage={"kernel": 3}),
        # The only stage whose first block adds its input.
        Stage(
            "stage1",
            "inverted_residual_v3",
            width=16,
            per_stage={"expand": 1, "se": "none", "activation": "relu"},
            per_block=KERNEL,
        ),
        Stage(
            "stage2",
            **BODY,
            width=(16, 24),
            depth=(1, 2),
            stride=2,
            per_stage=OPERATORS,
            per_block={**KERNEL, "expand": (3, 4, 6)},
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
            width=(40, 64, 80),
            depth=(1, 2, 3, 4),
            stride=2,
            per_stage=OPERATORS,
            per_block={**KERNEL, "expand": (2.3, 2.5, 4, 6)},
        ),
        Stage(
            "stage5",
            **BODY,
            width=(56, 88, 112),
            depth=(1, 2),
            per_stage=OPERATORS,
            per_block={**KERNEL, "expand": (3, 4, 6)},
        ),
        Stage(
            "stage6",
            **BODY,
            width=(80, 120, 160),
            depth=(1, 2, 3),
            stride=2,
            per_stage=OPERATORS,
            per_block={**KERNEL, "expand": (3, 4, 6)},
        ),
        Stage(
            "head", "mobilenet_v3_head", width=(480, 720, 960), per_stage={"hidden": (640, 1280)}
        ),
    ),
    references=(
        Reference(
            "mobilenet_v3_large",
            {
                "*.width": (24, 40, 80, 112, 160, 960),
                "*.depth": (2, 3, 4, 2, 3),
                "*.kernel": (3, 3, 5, 3, 3, 5),
                "*.se": ("none", "se", "none", "se", "se"),
                "*.activation": ("relu", "relu", "hard_swish", "hard_swish", "hard_swish"),
                "*.expand": (3, 3, 6, 6, 6),
                "stage2.0.expand": 4,
                "stage4.expand": (6, 2.5, 2.3, 2.3),
                "stage6.0.kernel": 5,
                "head.hidden": 1280,
            },
            # The authors' README. Table 3 of the paper has 219M, 1.1% more than its layers have.
            source="Howard et al. 2019, table 1; TF-slim, research/slim/nets/mobilenet/README.md; "
            "parameters: torchvision 0.29",
            params=5_483_032,
            macs=217e6,
        ),
    ),
)
