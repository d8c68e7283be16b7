"""SqueezeNet style networks (Iandola et al. 2016): fire modules with choices of their ratios.

The published networks have no batch norm; the space has it, because a supernet needs it. The
pooling layers stand where version 1.0 has them, or earlier, where version 1.1 has them.

Strides are those for 224 px. For smaller images the first strides become 1, one stage after
another, until the last map keeps `smallest_map` pixels a side.
"""

from nas.space import Reference, SearchSpace, Stage

FIRE = {"squeeze": (0.125, 0.25), "share3x3": (0.25, 0.5, 0.75)}
POOL = {"block": "max_pool", "per_stage": {"kernel": 3, "padding": "valid"}}
README = "Iandola et al. 2016; github.com/forresti/SqueezeNet"


def published(name: str, **changes) -> Reference:
    """Return version 1.0 with changes, for the 227 pixels that its data layer crops.

    The README of the network has 1.72 GFLOPs, which are 0.861 GMACs. The network pads its last 1x1
    convolution by a pixel, which adds 56 positions that hold nothing but biases and 29 million
    MACs, 3.3%. This package has no such padding.
    """
    settings = {
        "choices": {},
        "source": README,
        "params": 1_248_424,
        "macs": 861e6,
        "image_size": 227,
        "tolerance": 0.035,
        **changes,
    }
    choices = {
        "pooling": "1.0",
        "bypass": "none",
        "stem.width": 96,
        "stem.kernel": 7,
        "fire2.width": 128,
        "fire4.width": 256,
        "fire5.width": 256,
        "fire6.width": 384,
        "fire8.width": 512,
        "fire9.width": 512,
        "*.depth": 2,
        "*.squeeze": 0.125,
        "*.share3x3": 0.5,
        **settings.pop("choices"),
    }
    return Reference(name, choices, norm=False, **settings)


SPACE = SearchSpace(
    name="squeezenet",
    smallest_map=3,
    activation="relu",
    choices={"pooling": ("1.0", "1.1"), "bypass": ("none", "simple", "complex")},
    stages=(
        Stage(
            "stem",
            "conv",
            width=(32, 64, 96),
            stride=2,
            per_stage={"kernel": (3, 7), "padding": "valid"},
        ),
        Stage("pool1", **POOL, stride=2),
        Stage("fire2", "fire", (64, 128), (1, 2), per_block=FIRE),
        Stage("pool3", **POOL, stride={"1.0": 1, "1.1": 2}),
        Stage("fire4", "fire", (128, 256), per_block=FIRE),
        Stage("pool4", **POOL, stride={"1.0": 2, "1.1": 1}),
        Stage("fire5", "fire", (128, 256), per_block=FIRE),
        Stage("pool5", **POOL, stride={"1.0": 1, "1.1": 2}),
        Stage("fire6", "fire", (192, 384), (1, 2), per_block=FIRE),
        Stage("fire8", "fire", (256, 512), per_block=FIRE),
        Stage("pool8", **POOL, stride={"1.0": 2, "1.1": 1}),
        Stage("fire9", "fire", (256, 512), per_block=FIRE),
        Stage("head", "conv_classifier"),
    ),
    references=(
        published("squeezenet_1.0"),
        published(
            "squeezenet_1.1",
            choices={"pooling": "1.1", "stem.width": 64, "stem.kernel": 3},
            source=f"{README}; torchvision 0.29",
            params=1_235_496,
            macs=349e6,
            image_size=224,
            tolerance=0.01,
        ),
        published(
            "squeezenet_1.0_simple_bypass",
            choices={"bypass": "simple"},
            source="Iandola et al. 2016, section 6 and table 3",
        ),
        # Section 6 and figure 2 describe 1x1 convolutions around fire2, 4, 6 and 8: 341,248 more
        # parameters, 6.1 MiB in all. Table 3 has 7.7 MB, which does not follow from the text.
        published(
            "squeezenet_1.0_complex_bypass",
            choices={"bypass": "complex"},
            source="Iandola et al. 2016, section 6 and figure 2",
            params=1_589_672,
            macs=None,
        ),
    ),
)
