"""Duplicates: what re-compression, crops and brightness leave alike, and what is not alike."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from nas.data import duplicates
from nas.data.duplicates import (
    MAX_JOINED_GROUPS,
    USUAL_NEIGHBOURS,
    Duplicates,
    cached_duplicates,
    find_duplicates,
    joining_pairs,
)

SIDE = 32
COUNT = 120
MIN_CONTRAST = 30


@pytest.fixture(scope="module")
def photos():
    """Different crops of scikit-learn's two photos, `n x side x side x 3`."""
    rng = np.random.default_rng(0)
    crops = []
    for index in range(COUNT):
        photo = load_sample_images().images[index % 2]
        top, left = (int(rng.integers(0, side - 96)) // 96 * 96 for side in photo.shape[:2])
        crop = Image.fromarray(photo[top : top + 96, left : left + 96])
        crops.append(np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BOX)))
    different = np.unique(np.stack(crops), axis=0)
    return different[different.std((1, 2, 3)) > MIN_CONTRAST]


def compressed(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(io.BytesIO(file.getvalue())))


def cropped(image):
    box = (1, 1, SIDE - 1, SIDE - 1)
    resized = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR, box)
    return np.asarray(resized)


def brighter(image):
    return np.clip(image * 1.3, 0, 255).astype(np.uint8)


def darker(image):
    return (image * 0.7).astype(np.uint8)


@pytest.mark.parametrize("change", [compressed, cropped, brighter, darker])
def test_changed_image_is_a_near_duplicate_of_the_original_alone(photos, change):
    chosen = [3, 7, 11]
    changed = np.stack([change(photos[index]) for index in chosen])
    found = find_duplicates(np.concatenate([photos, changed]))
    assert len(found.exact) == 0
    expected = {(index, len(photos) + at) for at, index in enumerate(chosen)}
    pairs = set(map(tuple, found.near.tolist()))
    assert expected <= pairs
    assert len(pairs - expected) <= 1


def test_equal_pixels_are_exact_duplicates_of_the_first(photos):
    pixels = np.concatenate([photos, photos[[5, 5, 8]]])
    found = find_duplicates(pixels)
    first = len(photos)
    assert found.exact.tolist() == [[5, first], [5, first + 1], [8, first + 2]]
    assert find_duplicates(photos).exact.tolist() == []


def test_small_images_have_exact_duplicates_only():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    found = find_duplicates(np.concatenate([images, images[:1], images[:1] // 2]))
    assert found.exact.tolist() == [[0, 20]]
    assert len(found.near) == 0


def test_empty_images_are_no_near_duplicates(photos):
    grey = np.stack([np.full((SIDE, SIDE, 3), level, np.uint8) for level in (0, 100, 255)])
    found = find_duplicates(np.concatenate([photos, grey]))
    assert not np.isin(found.near, len(photos) + np.arange(3)).any()


def test_of_many_images_pairs_with_a_scored_one_are_compared(photos, monkeypatch):
    pixels = np.concatenate([photos, np.stack([brighter(photos[2]), brighter(photos[9])])])
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 10)
    is_scored = np.arange(len(pixels)) == len(photos)
    found = find_duplicates(pixels, is_scored)
    assert [2, len(photos)] in found.near.tolist()
    assert [9, len(photos) + 1] not in found.near.tolist()


def test_found_duplicates_are_kept_and_a_damaged_file_is_replaced(photos, tmp_path):
    pixels = np.concatenate([photos, photos[:1]])
    cache = tmp_path / "found.npz"
    first = cached_duplicates(cache, pixels)
    assert cached_duplicates(cache, pixels[:0]).exact.tolist() == first.exact.tolist() != []
    content = cache.read_bytes()
    half = len(content) // 2
    noise = np.random.default_rng(0).bytes(8)
    damaged = [content[:at] for at in (0, 1, 40, half, len(content) - 1)]
    damaged += [content[:at] + noise + content[at + 8 :] for at in (4, 60, half)]
    for each in (b"PK damaged", *damaged):
        cache.write_bytes(each)
        assert cached_duplicates(cache, pixels).exact.tolist() == first.exact.tolist()
        assert cached_duplicates(cache, pixels[:0]).exact.tolist() == first.exact.tolist()


def test_pairs_of_many_images_are_kept_by_what_is_scored(photos, tmp_path, monkeypatch):
    pixels = np.concatenate([photos, np.stack([brighter(photos[2]), brighter(photos[9])])])
    monkeypatch.setattr(duplicates, "MAX_COMPARED", 10)
    for at, other in ((0, 2), (1, 9), (0, 2)):
        is_scored = np.arange(len(pixels)) == len(photos) + at
        found = cached_duplicates(tmp_path / "found", pixels, is_scored)
        assert [other, len(photos) + at] in found.near.tolist()


def star(count, centre=0):
    """Return the pairs of one image with the ones behind it."""
    return np.array([(centre, centre + 1 + at) for at in range(count)])


def joined(near, groups, exact=(), pixels=None):
    pixels = (
        np.arange(len(groups), dtype=np.uint8)[:, None, None, None] if pixels is None else pixels
    )
    found = Duplicates(np.array(exact, int).reshape(-1, 2), np.array(near, int).reshape(-1, 2))
    return joining_pairs(found, pixels, np.array(groups)).tolist()


def test_equal_images_join_unless_they_have_one_colour(photos):
    pixels = np.concatenate([photos[:2], np.full((1, SIDE, SIDE, 3), (9, 20, 3), np.uint8)])
    pixels = np.concatenate([pixels, pixels, pixels])
    found = find_duplicates(pixels)
    assert len(found.exact) == 6
    expected = [[0, 3], [1, 4], [0, 6], [1, 7]]
    assert joining_pairs(found, pixels, np.arange(9)).tolist() == expected


def test_image_like_many_others_joins_none():
    usual, many = star(USUAL_NEIGHBOURS), star(USUAL_NEIGHBOURS + 1)
    assert joined(usual, range(20)) == usual.tolist()
    others = [[1, 2], [15, 16]]
    assert joined([*many, *others], range(20)) == others


def test_image_like_those_of_many_groups_joins_none():
    """Each of ten groups has four images, whose first ones look alike."""
    groups = np.arange(40) % 10
    few, many = star(MAX_JOINED_GROUPS), star(MAX_JOINED_GROUPS + 1)
    assert joined(few, groups) == few.tolist()
    others = [[11, 22], [15, 16]]
    assert joined([*many, *others], groups) == others
    inside = [(0, 10), (0, 20), (0, 30), (10, 20)]
    assert joined([*few, *inside], groups) == [*few.tolist(), *map(list, inside)]
