import pytest

from nas.errors import SpaceError
from nas.graph import Channels
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
    assert mixed.channels == Channels.prefix(2 * narrow, 2 * wide)


def test_split_numbers_each_half_by_its_place_in_the_widest_half():
    build = builder()
    x = build.conv(build.input, "a", Channels(((1, 3), (4, 5), (6, 7)), 8))
    first, second = build.split(x)
    assert (first.channels, second.channels) == (Channels(((1, 3),), 4), Channels.at([0, 2], 4))


def test_split_spreads_channels_that_are_not_in_their_half_of_the_widest_tensor():
    build = builder()
    first, second = build.split(build.conv(build.input, "a", Elastic(8, 4, 16)))
    assert first.channels == second.channels == Channels.at([0, 2, 4, 6], 8)


@pytest.mark.parametrize("count", [4, 6, 8, 12])
def test_units_replace_the_same_channels_at_every_width(count):
    """Each channel carries a label through the units, in a simulation that knows no numbering."""
    widest = 16

    def run(width: int, depth: int) -> tuple[Channels, list[int]]:
        build = Builder((1, 8, 8), classes=10, norm=False, activation="relu")
        half = Channels.spread(width // 2, widest // 2)
        parts = [build.conv(build.input, name, half) for name in "ab"]
        x = build.shuffle(build.concat(*parts), 2)
        labels = x.channels.positions
        for _ in range(depth):
            side, main = build.split(x)
            x = build.shuffle(build.concat(side, main, replaces=x), 2)
            both = zip(labels[: width // 2], labels[width // 2 :], strict=True)
            labels = [label for pair in both for label in pair]
        return x.channels.numbered, labels

    for depth in range(5):
        channels, labels = run(count, depth)
        assert channels.positions == labels
        assert sorted(labels) == sorted(run(count, 0)[1])


def test_shuffle_numbers_channels_anew_unless_they_replace_others():
    build = builder()
    a, b = (build.conv(build.input, name, 2) for name in "ab")
    both = build.concat(a, b)
    assert build.shuffle(both, 2).channels.numbered == Channels.prefix(4, 4)
    kept = build.concat(a, b, replaces=both)
    assert build.shuffle(kept, 2).channels.numbered.positions == [0, 2, 1, 3]
    with pytest.raises(SpaceError, match="of 4 of 4 channels cannot replace a tensor of 2 of 2"):
        build.concat(a, b, replaces=a)
