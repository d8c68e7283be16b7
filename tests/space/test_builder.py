import pytest

from nas.space.builder import Builder
from nas.space.elastic import Elastic


@pytest.mark.parametrize(
    ("value", "rounded"), [(3, 8), (8, 8), (11, 16), (12, 16), (18, 24), (20, 24), (100, 104)]
)
def test_channel_rounding_is_that_of_the_mobilenet_papers(value, rounded):
    """Never below 0.9 of the value: 11 would become 8, and becomes 16."""
    assert int(Elastic.of(value).rounded(8)) == rounded


def test_elastic_arithmetic_keeps_the_range():
    product = Elastic(16, 8, 32) * Elastic(3, 3, 6)
    assert (product.value, product.smallest, product.largest) == (48, 24, 192)
    share = Elastic(0.5, 0.25, 0.75).complement()
    assert (share.value, share.smallest, share.largest) == (0.5, 0.25, 0.75)


def builder() -> Builder:
    return Builder((3, 8, 8), classes=10, norm=False, activation="relu")


def test_concatenation_keeps_the_place_of_each_part_in_the_widest_version():
    build = builder()
    a = build.conv(build.input, "a", Elastic(4, 4, 8))
    b = build.conv(build.input, "b", Elastic(6, 2, 6))
    both = build.concat(a, b)
    assert both.channels.runs == ((0, 4), (8, 14))
    assert both.channels.extent == 14


def test_shuffling_equal_prefixes_gives_a_prefix():
    """The widest version's interleaving, narrowed, is the narrow version's interleaving."""
    narrow, wide = 4, 8
    widest = [channel for j in range(wide) for channel in (j, wide + j)]
    kept = {*range(narrow), *range(wide, wide + narrow)}
    assert [c for c in widest if c in kept] == widest[: 2 * narrow]
    build = builder()
    parts = [build.conv(build.input, name, Elastic(narrow, 4, wide)) for name in "ab"]
    mixed = build.shuffle(build.concat(*parts), 2)
    assert mixed.channels.is_prefix
    assert mixed.channels.extent == 2 * wide


def test_split_numbers_the_channels_of_each_half_anew():
    build = builder()
    first, second = build.split(build.conv(build.input, "a", Elastic(8, 4, 16)))
    assert first.channels == second.channels
    assert (first.channels.runs, first.channels.extent) == (((0, 4),), 8)
