"""Small spaces whose choices write one network in several ways, each for a reason of its own."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from nas.graph import Graph
from nas.space import IDENTITY, Architecture, SearchSpace, Stage

STEM = Stage("stem", "conv", 16, stride=2, per_stage={"kernel": 3})
HEAD = Stage("head", "linear_classifier")
OPS = {
    "skip": IDENTITY,
    "e3k3": {"expand": 3, "kernel": 3},
    "e6k5": {"expand": 6, "kernel": 5},
}


def space(*stages: Stage, **settings) -> SearchSpace:
    return SearchSpace(
        "small", (STEM, *stages, HEAD), image_size=16, channels=1, classes=3, **settings
    )


def plain() -> SearchSpace:
    """Different choices make different networks; only depth leaves some out."""
    block = {"kernel": (3, 5), "expand": (1, 3)}
    stage = Stage("body", "inverted_residual", (8, 16), (1, 2, 3), 2, per_block=block)
    return space(stage)


def rounded() -> SearchSpace:
    """Squeeze ratios of 1/8 and 1/4 of 16 channels both round to 8."""
    ratios = {"squeeze": (0.125, 0.25, 0.5), "share3x3": (0.25, 0.5)}
    return space(Stage("body", "fire", (16, 32, 64), (1, 2), per_block=ratios))


def skipping() -> SearchSpace:
    """A block left out may stand before or after another."""
    return space(Stage("body", "inverted_residual", 16, depth=4, per_block={"op": OPS}))


def skipping_deep() -> SearchSpace:
    """Blocks can be left out, and the depth is a choice besides."""
    return space(Stage("body", "inverted_residual", 16, (2, 4), 2, per_block={"op": OPS}))


def rows() -> SearchSpace:
    """Blocks left out in rows of their own, the width growing on the way."""
    first = [Stage(f"a{i}", "inverted_residual", 16, per_block={"op": OPS}) for i in range(3)]
    grown = Stage("b", "linear_bottleneck", 24, per_stage={"kernel": 3, "expand": (3, 6)})
    last = [Stage(f"c{i}", "inverted_residual", 24, per_block={"op": OPS}) for i in range(2)]
    return space(*first, grown, *last)


def shared_out() -> SearchSpace:
    """Two stages of the same blocks can share them out in several ways."""
    kernels = {"kernel": (3, 5)}
    return space(
        Stage("first", "conv", 16, (1, 2, 3), per_block=kernels),
        Stage("second", "conv", (16, 24), (1, 2), per_block=kernels),
    )


def double(build, x, name, *, width, kernel):
    """Two convolutions: the same as two blocks of one."""
    x = build.conv_unit(x, f"{name}.one", width, kernel=kernel)
    return build.conv_unit(x, f"{name}.two", width, kernel=kernel)


def single(build, x, name, *, width, kernel):
    return build.conv_unit(x, f"{name}.one", width, kernel=kernel)


def alternatives() -> SearchSpace:
    """Different blocks in one place, one of which is the other twice."""
    ops = {
        "one": {"block": single, "kernel": 3},
        "two": {"block": double, "kernel": 3},
        "wide": {"block": single, "kernel": 5},
        "none": IDENTITY,
    }
    return space(Stage("body", single, 16, (1, 3), per_block={"op": ops}))


def wide_choices() -> SearchSpace:
    """Choices for the whole network: where to pool, at which resolution, and a bundle."""
    return space(
        Stage("early", "max_pool", stride={"early": 2, "late": 1}, per_stage={"kernel": 3}),
        Stage("body", "conv", 16, (1, 2), per_block={"kernel": (3, 5)}),
        Stage("late", "max_pool", stride={"early": 1, "late": 2}, per_stage={"kernel": 3}),
        Stage("tail", "conv", (16, 24), per_stage={"kernel": 1}),
        choices={"pooling": ("early", "late")},
        resolutions=(0.75, 1.0),
    )


def two_dtypes() -> SearchSpace:
    """The networks of a space in two precisions."""
    return replace(rounded(), dtypes=("float32", "int8"))


SMALL = {
    make.__name__: make
    for make in (
        plain,
        rounded,
        skipping,
        skipping_deep,
        rows,
        shared_out,
        alternatives,
        wide_choices,
        two_dtypes,
    )
}


def architectures_by_digest(space_: SearchSpace) -> dict[str, set[Architecture]]:
    """Return the architecture of every combination of options, by the digest of its graph."""
    digests: dict[str, set[Architecture]] = {}
    for options in product(*space_.parameters.values()):
        architecture = space_.architecture(dict(zip(space_.parameters, options, strict=True)))
        digests.setdefault(architecture.digest, set()).add(architecture)
    return digests


def raw_graphs(space_: SearchSpace):
    """Iterate over every combination of options and its graph, without canonical forms."""
    for options in product(*space_.parameters.values()):
        choices = dict(zip(space_.parameters, options, strict=True))
        input_op, blocks = space_._lowering.walk(choices)
        ops = [input_op]
        for block, name in blocks:
            ops += block.ops_at(len(ops) - 1, name)
        yield choices, Graph(tuple(ops))
