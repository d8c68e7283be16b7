"""Wrong tables and wrong choices: every message names the stage and says what would be accepted."""

import sys

import pytest

from nas.errors import SpaceError
from nas.space import IDENTITY, Reference, SearchSpace, Stage, load_definition, load_space

STEM = Stage("stem", "conv", 16, stride=2, per_stage={"kernel": 3})
BODY = {"kernel": 3, "expand": 6}


def space(*stages, **settings):
    return SearchSpace("mine", stages, **{"image_size": 32, "classes": 4, **settings})


def visited(checked):
    """All blocks of a space built, as `nas spaces` and every job do first."""
    list(checked.block_graphs())
    return checked


def nameless(build, x, name, *, width):
    return build.conv_unit(x, "weights", width)


def backwards(build, x, name, *, width):
    return build.conv_unit(build.activate(x), name, width)


def mistyped(build, x, name, *, width):
    return build.conv_unit(x, name, widht)  # noqa: F821


def leaving(build, x, name, *, width):
    sys.exit(0)


def silent(build, x, name, *, width):
    build.conv_unit(x, name, width)


def returns_earlier(build, x, name, *, width):
    first = build.conv_unit(x, f"{name}.first", width)
    build.conv_unit(first, f"{name}.second", width)
    return first


def line_of(block):
    """The line of a function's only statement."""
    return block.__code__.co_firstlineno + 1


def convolution(width=8, **settings):
    """A space of one convolution."""
    return space(Stage("s", "conv", width, **{"per_stage": {"kernel": 3}, **settings}))


def kernels(options):
    return convolution(per_stage={"kernel": options})


def residual(**choices):
    return space(STEM, Stage("s", "inverted_residual", 8, per_block={**BODY, **choices}))


def of_block(block, *before):
    return space(*before, Stage("s", block, 8))


BAD = {
    "a width its groups do not divide": (
        lambda: space(
            Stage("stem", "conv", 30, per_stage={"kernel": 3}),
            Stage("s", "shuffle_v1_unit", per_stage={"groups": (3, 4), "kernel": 3, "base": 30}),
        ),
        ["stage s", "shuffle_v1_unit with groups 4", "30", "multiples of 4"],
    ),
    "a kernel without padding larger than its input": (
        lambda: space(
            Stage("a", "conv", 8, stride=2, per_stage={"kernel": 3}),
            Stage("s", "max_pool", stride=2, per_stage={"kernel": 33, "padding": "valid"}),
            image_size=64,
        ),
        ["stage s", "kernel of 33", "32x32", "at most 32"],
    ),
    "a kernel that meets nothing but padding": (
        lambda: space(
            *[Stage(f"s{i}", "conv", 8, stride=2, per_stage={"kernel": 3}) for i in range(3)],
            Stage("late", "conv", 8, per_stage={"kernel": 9}),
        ),
        ["stage late", "kernel of 9", "4x4", "at most 7"],
    ),
    "even kernel": (lambda: kernels((3, 4)), ["stage s", "kernel size 4 is even", "odd"]),
    "infinite option": (
        lambda: kernels((3, float("nan"))),
        ["stage s", "kernel has the options 3, nan", "finite"],
    ),
    "options twice": (lambda: kernels((3, 3)), ["stage s", "kernel", "different values"]),
    "words and numbers": (lambda: kernels((3, "5")), ["stage s", "kernel", "numbers only"]),
    "option with control characters": (
        lambda: convolution(per_block={"op": {"\x1b[31m": {"kernel": 3}}}),
        ["stage s", r"op has the options '\x1b[31m'", "printable"],
    ),
    "two stages of one name": (lambda: space(STEM, STEM), ["two stages", "'stem'"]),
    "reserved name": (lambda: space(Stage("a.b", "conv", 8)), ["'a.b' is not a name"]),
    "two choices of one name": (
        lambda: space(STEM, Stage("s", silent, 8, (1, 2), per_stage={"depth": (1, 2)})),
        ["stage s", "depth"],
    ),
    "reference without choices": (
        lambda: space(STEM, references=(Reference("a", None, source=""),)),
        ["Reference a", "choices is None"],
    ),
    "references that are none": (
        lambda: space(STEM, references=("a",)),
        ["references is ('a',)", "tuple of References"],
    ),
    "size that is no number": (lambda: space(STEM, image_size="8"), ["image_size is '8'"]),
    "expand ratio of zero": (
        lambda: residual(expand=(0, 3)),
        ["stage s", "0 channels", "above 0", "IDENTITY"],
    ),
    "expand ratio of a million": (
        lambda: residual(expand=1e6),
        ["stage s", "1.6e+07 channels", "at most 1048576"],
    ),
    "width of zero": (lambda: convolution((0, 8)), ["stage s", "width is (0, 8)", "1 or more"]),
    "half a depth": (lambda: convolution(depth=1.5), ["stage s", "depth is 1.5", "1 or more"]),
    "stride of three": (lambda: convolution(stride=3), ["stage s", "stride is 3", "1 or 2"]),
    "strides for no choice": (
        lambda: space(
            Stage("s", "conv", 8, stride={"a": 1, "b": 2}, per_stage={"kernel": 3}),
            choices={"pooling": ("a", "c")},
        ),
        ["stage s", "['a', 'b']", "pooling ['a', 'c']"],
    ),
    "choices that are a list": (
        lambda: convolution(per_stage=[("kernel", 3)]),
        ["stage s", "per_stage is [('kernel', 3)]", "a mapping"],
    ),
    "bundle that is a number": (
        lambda: convolution(per_block={"op": {"a": 3}}),
        ["stage s", "op 'a' is 3", "IDENTITY"],
    ),
    "choice that no block takes": (
        lambda: convolution(per_stage={"kernel": 3, "colour": (1, 2)}),
        ["stage s", "colour", "kernel"],
    ),
    "choice that is missing": (
        lambda: space(Stage("s", "inverted_residual", 8, per_stage={"kernel": 3})),
        ["stage s", "needs expand"],
    ),
    "network-wide choice that nothing takes": (
        lambda: space(STEM, choices={"groups": (1, 2)}),
        ["network-wide groups"],
    ),
    "resolutions in pixels": (
        lambda: space(STEM, resolutions=(24, 32)),
        ["resolutions is (24, 32)", "shares of the image size", "not pixels", "(0.75, 1.0)"],
    ),
    "resolutions that are one number": (
        lambda: space(STEM, resolutions=0.5),
        ["resolutions is 0.5", "Give shares of the image size"],
    ),
    "resolutions of nothing": (lambda: space(STEM, resolutions=(0.0, 1.0)), ["resolutions"]),
    "no stages": (lambda: space(), ["has no stages"]),
    "unknown activation": (lambda: space(STEM, activation="gelu"), ["'gelu'", "relu6"]),
    "unknown activation of a stage": (
        lambda: space(
            STEM,
            Stage(
                "s",
                "inverted_residual_v3",
                16,
                per_stage={**BODY, "se": "se", "activation": ("relu", "swish")},
            ),
        ),
        ["stage s", "'swish'", "hard_swish"],
    ),
    "unknown block": (lambda: of_block("resnet"), ["stage s", "'resnet'", "fire"]),
    "block left out that changes the width": (
        lambda: space(
            STEM,
            Stage("s", "inverted_residual", 24, per_block={"op": {"no": IDENTITY, "yes": BODY}}),
        ),
        ["stage s", "16 channels into 24", "entry"],
    ),
    "odd channels split in two": (
        lambda: space(
            Stage("stem", "conv", 9, per_stage={"kernel": 3}),
            Stage("s", "shuffle_unit", per_block={"unit": "basic", "kernel": 3}),
        ),
        ["stage s", "9 channels cannot be split"],
    ),
    "block with an op that leads nowhere": (
        lambda: of_block(returns_earlier),
        ["stage s", "returns_earlier", "not the last it made"],
    ),
    "block with a name that is not defined": (
        lambda: of_block(mistyped),
        ["stage s", f"{__file__}, line {line_of(mistyped)}", "mistyped", "NameError", "widht"],
    ),
    "block that ends the program": (
        lambda: of_block(leaving),
        ["stage s", "leaving", f"{__file__}, line {line_of(leaving)}", "SystemExit: 0"],
    ),
    "block that returns nothing": (
        lambda: of_block(silent),
        ["stage s", "silent", "returns None", "Return the tensor"],
    ),
    "block with weights of another's name": (
        lambda: of_block(nameless),
        ["stage s", "'weights'", "name"],
    ),
    "block that fuses backwards": (
        lambda: of_block(backwards, STEM),
        ["stage s", "begins with relu", "end of the blocks before"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_table_that_makes_no_network_is_refused(case):
    make, words = BAD[case]
    with pytest.raises(SpaceError) as error:
        visited(make())
    assert not [word for word in words if word not in str(error.value)], str(error.value)
    assert str(error.value).isprintable()
    assert error.value.exit_status == 2


def test_strides_keep_a_map_of_one_pixel_at_least():
    """However many there are: a small image drops the first of them."""
    halves = [Stage(f"s{i}", "conv", 8, stride=2, per_stage={"kernel": 3}) for i in range(9)]
    strided = visited(space(*halves, Stage("head", "linear_classifier")))
    graph = strided.largest.graph
    assert min(op.shape[1] for op in graph.ops if op.kind == "conv") == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stem.width": 33}, ["stem.width is 33", "16, 24, 32"]),
        ({"stage2.depth": True}, ["stage2.depth is True", "1, 2"]),
        ({"stage2.depth": None}, ["stage2.depth is None"]),
        ({"stage2.0.kernel": "3"}, ["stage2.0.kernel is '3'", "3, 5"]),
    ],
)
def test_a_choice_outside_the_options_is_refused(changes, words):
    mobilenet = load_definition("mobilenet")
    with pytest.raises(SpaceError) as error:
        mobilenet.architecture({**dict(mobilenet.smallest.choices), **changes})
    assert not [word for word in words if word not in str(error.value)], str(error.value)


def test_a_missing_choice_is_refused():
    mobilenet = load_definition("mobilenet")
    choices = dict(mobilenet.smallest.choices)
    del choices["stem.width"]
    with pytest.raises(SpaceError, match=r"stem.width is missing. Allowed: 16"):
        mobilenet.architecture(choices)


def test_an_equal_float_stands_for_an_integer_option():
    """JSON from elsewhere may hold 3.0 for 3."""
    mobilenet = load_definition("mobilenet")
    choices = {key: float(value) for key, value in mobilenet.smallest.choices.items()}
    assert mobilenet.architecture(choices) == mobilenet.smallest
    assert all(isinstance(value, int) for value in mobilenet.architecture(choices).choices.values())


def test_an_architecture_of_another_space_is_not_lowered():
    with pytest.raises(SpaceError, match="squeezenet_tiny has no choice .* mobilenet needs"):
        load_definition("mobilenet").lower(load_definition("squeezenet_tiny").smallest)


def test_networks_that_do_not_classify_are_refused(tmp_path):
    """A supernet of them would learn to tell the channels of the last map apart."""
    file = tmp_path / "headless.py"
    file.write_text(
        "from nas.space import SearchSpace, Stage\n"
        'SPACE = SearchSpace("headless", (Stage("stem", "conv", 16, per_stage={"kernel": 3}),))\n'
    )
    with pytest.raises(SpaceError, match="headless: its networks end with 16 x 8 x 8 numbers"):
        load_space(file, image_size=8, channels=1)
    body = Stage("body", "conv", 10, per_stage={"kernel": 3})
    space(STEM, body, Stage("head", "linear_classifier")).require_classifier()
