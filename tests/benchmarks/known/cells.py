"""A space of two cells of three blocks: each block is one of four operators, or the identity."""

from nas.space import IDENTITY, SearchSpace, Stage

OPS = {
    "skip": IDENTITY,
    "light": {"block": "inverted_residual", "kernel": 3, "expand": 1},
    "wide": {"block": "inverted_residual", "kernel": 5, "expand": 3},
    "shuffle": {"block": "shuffle_unit", "kernel": 3, "unit": "basic"},
    "dense": {"block": "conv", "kernel": 3},
}


def cell(number, width):
    """Return a convolution that halves the image, and a stage of three blocks."""
    return (
        Stage(f"reduce{number}", "conv", width=width, stride=2, per_stage={"kernel": 3}),
        Stage(f"cell{number}", "conv", width=width, depth=3, per_block={"op": OPS}),
    )


SPACE = SearchSpace(
    name="cells",
    image_size=8,
    channels=1,
    classes=10,
    smallest_map=2,
    stages=(*cell(1, 16), *cell(2, 32), Stage("head", "linear_classifier")),
)
