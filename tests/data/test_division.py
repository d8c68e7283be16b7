"""Division of groups among parts, compared with all assignments of small random cases."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nas.data import division
from nas.data.division import IndivisibleError, divide_groups

SHARES = (0.53, 0.18, 0.09, 0.2)
FEWEST = (2, 1, 1, 1)


def images_of(counts):
    """Return the group and the label of each image, given counts `groups x classes`."""
    groups, labels = np.nonzero(counts)
    return np.repeat(groups, counts[groups, labels]), np.repeat(labels, counts[groups, labels])


def divided(counts, seed=0, shares=SHARES, fewest=FEWEST):
    """Return the part of each group, and check that all images of a group are in it."""
    groups, labels = images_of(counts)
    part_of = divide_groups(groups, labels, shares, fewest, np.random.default_rng(seed))
    parts = np.full(len(counts), -1)
    parts[groups] = part_of
    np.testing.assert_array_equal(parts[groups], part_of)
    return parts


def counts_of(counts, parts, part_count):
    """Return the number of images by part and class."""
    return np.stack([counts[parts == part].sum(0) for part in range(part_count)])


def is_valid(counts, parts, fewest):
    return bool((counts_of(counts, parts, len(fewest)) >= np.array(fewest)[:, None]).all())


def is_possible(counts, fewest):
    """Return whether any assignment is valid, by trying all."""
    parts = np.indices((len(fewest),) * len(counts)).reshape(len(counts), -1)
    images = [counts.T @ (parts == part) >= least for part, least in enumerate(fewest)]
    return bool(np.all(images, axis=(0, 1)).any())


@st.composite
def small_cases(draw):
    """Return counts `groups x classes`, and the fewest images of each part."""
    fewest = draw(st.sampled_from([(1, 1), (2, 1), (2, 1, 1), FEWEST]))
    groups = draw(st.integers(2, {2: 8, 3: 6, 4: 6}[len(fewest)]))
    classes = draw(st.integers(1, 3))
    cells = st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=classes, max_size=classes)
    counts = np.array(draw(st.lists(cells, min_size=groups, max_size=groups)))
    assume(counts.any(0).all() and counts.any(1).all())
    return counts, fewest


@settings(max_examples=100, deadline=None)
@given(case=small_cases(), seed=st.integers(0, 2**32 - 1))
def test_there_is_a_division_whenever_one_of_all_assignments_is_valid(case, seed):
    counts, fewest = case
    shares = SHARES[: len(fewest)] / np.sum(SHARES[: len(fewest)])
    if is_possible(counts, fewest):
        assert is_valid(counts, divided(counts, seed, shares, fewest), fewest)
        return
    with pytest.raises(IndivisibleError) as error:
        divided(counts, seed, shares, fewest)
    labels = error.value.labels
    assert error.value.is_proven
    assert not is_possible(counts[:, labels], fewest)
    for left_out in labels:
        assert is_possible(counts[:, [label for label in labels if label != left_out]], fewest)


def test_program_finds_one_of_few_valid_divisions():
    """Each of ten classes is in five of twenty groups: few of the assignments are valid."""
    rng = np.random.default_rng(3)
    counts = np.zeros((20, 10), int)
    for label in range(10):
        counts[rng.choice(20, 5, replace=False), label] = 3
    counts = counts[counts.any(1)]
    for seed in range(3):
        assert is_valid(counts, divided(counts, seed), FEWEST)


def test_end_of_the_time_is_not_a_proof(monkeypatch):
    monkeypatch.setattr(division, "MAX_PROGRAM_SECONDS", 0)
    with pytest.raises(IndivisibleError) as error:
        divided(np.array([[9, 9], [9, 0], [0, 9]]), shares=(0.5, 0.3, 0.2), fewest=(1, 1, 1))
    assert error.value.labels == [0, 1]
    assert not error.value.is_proven


@pytest.mark.parametrize(
    "sizes",
    [(15, 15, 15, 15), (40, 12, 6, 4, 3), (60, 8, 5, 5), (100, 1, 1, 1), (2, 1, 1, 1), (1,) * 5],
)
def test_four_groups_a_class_suffice(sizes):
    counts = np.kron(np.eye(3, dtype=int), np.array(sizes)[:, None])
    divisions = {tuple(divided(counts, seed)) for seed in range(12)}
    assert all(is_valid(counts, np.array(parts), FEWEST) for parts in divisions)
    assert len(divisions) > 3
    assert tuple(divided(counts, 5)) == tuple(divided(counts, 5))


def test_small_and_equal_groups_are_in_each_part_for_some_seed():
    sizes = np.arange(1, 41) % 9 + 1
    counts = np.concatenate([[[60, 0]], np.stack([sizes, sizes[::-1]], 1)])
    parts = np.stack([divided(counts, seed) for seed in range(40)])
    assert (parts[:, 0] == 0).all(), "the largest group is more than each other part should get"
    shares = np.stack([(parts[:, 1:] == part).mean(0) for part in range(4)])
    assert (shares > 0).mean() > 0.95
    np.testing.assert_allclose(shares.mean(1)[1:], np.divide(SHARES[1:], 1 - 0.1), atol=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_parts_get_their_share_of_each_class(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 20, (300, 3)) * (rng.random((300, 3)) < 0.5)
    counts[0, 0] = 250
    counts = counts[counts.any(1)]
    shares = counts_of(counts, divided(counts, seed), 4) / counts.sum(0)
    np.testing.assert_allclose(shares, np.repeat(np.array(SHARES)[:, None], 3, 1), atol=0.01)


def test_a_share_of_almost_nothing_is_an_image_of_each_class():
    counts = np.kron(np.eye(4, dtype=int), np.full((30, 1), 2))
    parts = divided(counts, shares=(0.998, 0.001, 0.0005, 0.0005))
    assert is_valid(counts, parts, FEWEST)
    assert np.bincount(parts)[1:].tolist() == [4, 4, 4]
