"""EfficientNet-Lite1 to Lite4 style networks (Liu 2020), wider and deeper than Lite0.

The widths and depths are those of EfficientNet's compound scaling (Tan and Le 2019); the stem, the
head, and the depth of the first and last stage are not scaled. Lite0 is in `efficientnet_lite`.
The authors' README has 631M to 2.64B MAdds, 3% to 5% above the layers.

Strides are those for the images of the published networks, 240 to 300 px. For smaller images the
first strides become 1, one stage after another, until the last map keeps `smallest_map` pixels a
side.
"""

from nas.space import Reference, SearchSpace, Stage

BODY = {"block": "inverted_residual", "entry": "linear_bottleneck"}
BLOCK = {"kernel": (3, 5), "expand": (3, 6)}


def published(
    number: int, image_size: int, widths: tuple[int, ...], depths: tuple[int, ...], params: int
) -> Reference:
    """Return a network with the widths and depths of stages 1 to 7 and 2 to 6."""
    return Reference(
        f"efficientnet_lite{number}",
        {
            "*.width": widths,
            "*.depth": depths,
            "*.kernel": (3, 3, 5, 3, 5, 5, 3),
            "*.expand": 6,
        },
        source="github.com/tensorflow/tpu, models/official/efficientnet/lite; parameters: timm 1.0",
        params=params,
        image_size=image_size,
    )


SPACE = SearchSpace(
    name="efficientnet_lite_large",
    smallest_map=3,
    activation="relu6",
    stages=(
        Stage("stem", "conv", width=32, stride=2, per_stage={"kernel": 3}),
        Stage(
            "stage1",
            "linear_bottleneck",
            width=(16, 24),
            per_stage={"expand": 1},
            per_block={"kernel": (3, 5)},
        ),
        Stage("stage2", **BODY, width=(24, 32), depth=(2, 3, 4), stride=2, per_block=BLOCK),
        Stage("stage3", **BODY, width=(40, 48, 56), depth=(2, 3, 4), stride=2, per_block=BLOCK),
        Stage(
            "stage4",
            **BODY,
            width=(80, 88, 96, 112),
            depth=(3, 4, 5, 6),
            stride=2,
            per_block=BLOCK,
        ),
        Stage("stage5", **BODY, width=(112, 120, 136, 160), depth=(3, 4, 5, 6), per_block=BLOCK),
        Stage(
            "stage6",
            **BODY,
            width=(192, 208, 232, 272),
            depth=(4, 5, 6, 8),
            stride=2,
            per_block=BLOCK,
        ),
        Stage("stage7", **BODY, width=(320, 352, 384, 448), per_block=BLOCK),
        Stage("head", "pool_classifier", width=1280),
    ),
    references=(
        published(1, 240, (16, 24, 40, 80, 112, 192, 320), (3, 3, 4, 4, 5), params=5_416_680),
        published(2, 260, (16, 24, 48, 88, 120, 208, 352), (3, 3, 4, 4, 5), params=6_092_072),
        published(3, 280, (24, 32, 48, 96, 136, 232, 384), (3, 3, 5, 5, 6), params=8_197_096),
        published(4, 300, (24, 32, 56, 112, 160, 272, 448), (4, 4, 6, 6, 8), params=13_006_568),
    ),
)
