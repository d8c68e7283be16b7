import numpy as np
import pytest

from nas.search.encoding import Encoding
from nas.space import Architecture, load_space, neighbours
from tests.search.test_study import SPACES

DEEP = load_space("mobilenet_v3_small", image_size=32)
ALL = [*SPACES, DEEP]


def apart(encoding, a, b):
    """The distance that the bits and their weights make."""
    bits = encoding([a, b]).bits
    return float(encoding.weights @ np.abs(bits[0] - bits[1]))


def counted(space, a, b):
    """One for each other word, and for numbers the share of the way between the extremes."""
    first, second = dict(a.choices), dict(b.choices)
    found = 0.0
    for key in first.keys() & second.keys():
        options = space.parameters[key]
        if isinstance(options[0], str):
            found += first[key] != second[key]
        else:
            ranks = sorted(options)
            steps = ranks.index(first[key]) - ranks.index(second[key])
            found += abs(steps) / (len(options) - 1)
    return found


def drawn(space, count, seed=0):
    rng = np.random.default_rng(seed)
    return [space.sample(rng, uniform_over="choices") for _ in range(count)]


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_distances_are_those_counted_choice_by_choice(space):
    encoding = Encoding([space])
    some = drawn(space, 40)
    # Of two blocks beyond the other's depth there is nothing to compare, so those of one depth.
    pairs = [(a, b) for a in some for b in some if dict(a.choices).keys() == dict(b.choices).keys()]
    assert sum(a != b for a, b in pairs) > 10
    for a, b in pairs:
        assert apart(encoding, a, b) == pytest.approx(counted(space, a, b))


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_a_choice_that_one_architecture_lacks_sets_them_further_apart(space):
    encoding = Encoding([space])
    some = drawn(space, 40)
    pairs = [(a, b) for a in some for b in some if dict(a.choices).keys() != dict(b.choices).keys()]
    assert len(pairs) > 10
    for a, b in pairs:
        assert apart(encoding, a, b) > counted(space, a, b) + 0.1


def test_words_are_one_apart_and_numbers_by_their_rank():
    space = load_space("squeezenet_tiny", image_size=8, channels=1)
    encoding = Encoding([space])
    named = {key: options[0] for key, options in space.parameters.items()}

    def of(**choices):
        return space.architecture(named | {k.replace("_", "."): v for k, v in choices.items()})

    assert space.parameters["stage1.width"] == (16, 32, 64)
    low, middle, high = (of(stage1_width=width) for width in (16, 32, 64))
    assert apart(encoding, low, high) == pytest.approx(1)
    assert apart(encoding, low, middle) == apart(encoding, middle, high) == pytest.approx(0.5)
    shuffle = load_space("shufflenet_tiny", image_size=8, channels=1)
    words = {key: options[0] for key, options in shuffle.parameters.items()}
    basic = shuffle.architecture(words | {"stage1.depth": 2, "stage1.1.unit": "basic"})
    other = shuffle.architecture(words | {"stage1.depth": 2, "stage1.1.unit": "xception"})
    assert apart(Encoding([shuffle]), basic, other) == pytest.approx(1)


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_architectures_have_equal_rows_if_and_only_if_they_are_equal(space):
    some = drawn(space, 60)
    read = [Architecture(each.space, tuple(each.choices)) for each in some]
    rows, again = Encoding([space])(some), Encoding([space])(read)
    assert (rows.bits == again.bits).all()
    assert (rows.counts == again.counts).all()
    assert set(np.unique(rows.bits)) == {0, 1}
    assert len(np.unique(rows.bits, axis=0)) == len(set(some))


def test_rows_stand_in_the_order_of_the_architectures():
    encoding = Encoding(ALL)
    some = [each for space in ALL for each in drawn(space, 5)]
    rows = encoding(some)
    for position, each in enumerate(some):
        assert (rows.bits[position] == encoding([each]).bits[0]).all()
        assert (rows.counts[position] == encoding([each]).counts[0]).all()
    last = rows.last(3)
    assert (last.bits == encoding(some[-3:]).bits).all()
    assert (last.counts == encoding(some[-3:]).counts).all()


def test_there_are_as_many_columns_for_no_architecture():
    encoding = Encoding(ALL)
    rows = encoding([])
    assert rows.bits.shape == (0, len(encoding.weights))
    assert rows.counts.shape == (0, 3)


def test_several_spaces_share_no_bit_and_keep_their_own_distances():
    encoding = Encoding(ALL)
    bits = {space.name: encoding(drawn(space, 30)).bits for space in ALL}
    for a in ALL:
        for b in ALL:
            shared = (bits[a.name].any(axis=0) & bits[b.name].any(axis=0)).any()
            assert shared == (a is b)
    for space in ALL:
        alone = Encoding([space])
        first, *others = drawn(space, 10)
        for other in others:
            assert apart(encoding, first, other) == pytest.approx(apart(alone, first, other))


def test_every_bit_knows_its_choice():
    encoding = Encoding(ALL)
    assert len(encoding.choices) == len(encoding.weights)
    # One for each choice and one for each space, without gaps.
    count = sum(1 + len(space.parameters) for space in ALL)
    assert sorted(set(encoding.choices)) == list(range(count))
    for space in ALL:
        numbers = {}
        for first in drawn(space, 30):
            for key, number in differing(encoding, space, first):
                numbers.setdefault(key, set()).add(number)
        assert len(numbers) > 5
        assert all(len(found) == 1 for found in numbers.values())
        assert len(set.union(*numbers.values())) == len(numbers)


def differing(encoding, space, first):
    """The choices of the bits that change with a single choice."""
    for second in neighbours(first):
        changed = dict(first.choices).items() ^ dict(second.choices).items()
        if len({key for key, _ in changed}) == 1:
            bits = encoding([first, second]).bits
            for number in encoding.choices[bits[0] != bits[1]]:
                yield next(iter(changed))[0], number


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_counts_are_those_of_the_graph(space):
    some = drawn(space, 20)
    counts = np.exp(Encoding(ALL)(some).counts) - 1
    for architecture, row in zip(some, counts, strict=True):
        graph = architecture.graph
        layers = graph.counts()["conv"] + graph.counts()["linear"]
        assert row == pytest.approx([graph.macs, graph.params, layers])


@pytest.mark.parametrize("space", ALL, ids=lambda space: space.name)
def test_sums_over_layers_are_linear_in_the_counts_of_ops(space):
    """As a latency is that is the sum of its kernels'."""
    rng = np.random.default_rng(0)
    cost = {}

    def latency(graph):
        found = 0.0
        for op in graph.ops:
            if op.kind in ("conv", "linear"):
                layer = (op.kind, graph.input_channels(op), *op[2:7])
                found += cost.setdefault(layer, rng.random())
        return found

    some = drawn(space, 300)
    ops = Encoding(ALL)(some).ops
    values = np.array([latency(each.graph) for each in some])
    assert ops.sum(axis=1) == pytest.approx(
        [sum(each.graph.counts()[kind] for kind in ("conv", "linear")) for each in some]
    )
    fitted, *_ = np.linalg.lstsq(ops, values)
    # Layers that share a column by chance are taken for one.
    assert np.corrcoef(ops @ fitted, values)[0, 1] > 0.995


def test_counts_of_ops_do_not_depend_on_what_was_encoded_before():
    space = SPACES[0]
    some = drawn(space, 20)
    later = Encoding([space])
    later(drawn(space, 50, seed=1))
    assert (later(some).ops == Encoding(SPACES)(some).ops).all()
