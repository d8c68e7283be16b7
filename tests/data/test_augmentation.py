"""Against Pillow, one image at a time; geometry against whole pixels moved by hand."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from nas.data.augmentation import (
    RANDAUGMENT_OPERATIONS,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    adjust_sharpness,
    apply_randaugment,
    autocontrast,
    equalize,
    posterize,
    rotate,
    shear,
    solarize,
    translate,
)

FACTORS = (0.1, 0.6, 1.0, 1.3, 1.9)
STEP = 1.01 / 255
"""Pillow works in whole levels, and rounds more than once."""


@pytest.fixture
def images():
    """Some of uneven noise, one dark, one of a single colour."""
    rng = np.random.default_rng(0)
    made = rng.integers(30, 220, (5, 12, 12, 3), np.uint8)
    made[1] //= 4
    made[2] = 77
    made[3, :6] = rng.integers(0, 60, (6, 12, 3))
    return made


def batch(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def by_pillow(images, change):
    made = [np.asarray(change(Image.fromarray(image), i)) for i, image in enumerate(images)]
    return batch(np.stack(made))


@pytest.mark.parametrize(
    ("ours", "enhancer"),
    [
        (adjust_brightness, ImageEnhance.Brightness),
        (adjust_contrast, ImageEnhance.Contrast),
        (adjust_saturation, ImageEnhance.Color),
        (adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_tones(images, ours, enhancer):
    expected = by_pillow(images, lambda image, i: enhancer(image).enhance(FACTORS[i]))
    found = ours(batch(images), torch.tensor(FACTORS)).clamp(0, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * STEP)


def test_levels(images):
    exactly = {"rtol": 0, "atol": 1e-6}
    bits = [1, 3, 4, 6, 8]
    expected = by_pillow(images, lambda image, i: ImageOps.posterize(image, bits[i]))
    found = posterize(batch(images), torch.tensor(bits))
    torch.testing.assert_close(found, expected, **exactly)
    limits = [0, 60, 128, 200, 256]
    expected = by_pillow(images, lambda image, i: ImageOps.solarize(image, limits[i]))
    found = solarize(batch(images), (torch.tensor(limits) - 0.5) / 255)
    torch.testing.assert_close(found, expected, **exactly)
    expected = by_pillow(images, lambda image, i: ImageOps.equalize(image))
    torch.testing.assert_close(equalize(batch(images)), expected, **exactly)
    expected = by_pillow(images, lambda image, i: ImageOps.autocontrast(image))
    torch.testing.assert_close(autocontrast(batch(images)), expected, rtol=0, atol=STEP)


def test_shifts_repeat_the_border(images):
    x = batch(images)
    found = translate(x, torch.full((5,), 2 / 12), 0)
    torch.testing.assert_close(found[..., :10], x[..., 2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found[..., 10:], x[..., 11:].expand(-1, -1, -1, 2), rtol=0, atol=1e-5
    )
    found = translate(x, torch.full((5,), -3 / 12), 1)
    torch.testing.assert_close(found[:, :, 3:], x[:, :, :9], rtol=0, atol=1e-5)


def test_turns(images):
    x = batch(images)
    quarter = torch.full((5,), math.pi / 2)
    torch.testing.assert_close(rotate(x, quarter), torch.rot90(x, 1, (2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(rotate(x, 0 * quarter), x, rtol=0, atol=1e-5)


def test_shears_move_lines_by_their_distance_from_the_middle(images):
    x = batch(images)
    found = shear(x, torch.full((5,), 2.0), 0)
    for row in range(12):
        by = 2 * row - 11  # 2 times the row's distance from the middle, 5.5.
        columns = (np.arange(12) + by).clip(0, 11)
        torch.testing.assert_close(found[:, :, row], x[:, :, row][..., columns], rtol=0, atol=1e-4)
    down = shear(x.transpose(2, 3), torch.full((5,), 2.0), 1)
    torch.testing.assert_close(down, found.transpose(2, 3), rtol=0, atol=1e-4)


def test_every_image_goes_through_what_was_drawn_for_it(images):
    x = batch(images)
    names = list(RANDAUGMENT_OPERATIONS)
    first = torch.tensor(
        [names.index(n) for n in ("identity", "solarize", "rotate", "rotate", "color")]
    )
    second = torch.tensor([names.index(n) for n in ("identity", "rotate", *["identity"] * 3)])
    sizes = torch.tensor([[0.5, 0.5, 0.5, -0.5, 0.5]]).expand(2, -1)
    found = apply_randaugment(x, torch.stack([first, second]), sizes)
    assert torch.equal(found[0], x[0])
    own = slice(1, 2)
    half = torch.tensor([math.radians(15)])
    torch.testing.assert_close(found[own], rotate(solarize(x[own], torch.tensor([0.5])), half))
    torch.testing.assert_close(found[2:4], rotate(x[2:4], torch.cat([half, -half])))
    torch.testing.assert_close(
        found[4:], adjust_saturation(x[4:], torch.tensor([1.45])).clamp(0, 1)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_all_operations_keep_shape_and_range(channels):
    x = torch.rand(8, channels, 9, 9)
    sizes = torch.tensor([[1.0, -1.0] * 4])
    for number, name in enumerate(RANDAUGMENT_OPERATIONS):
        found = apply_randaugment(x, torch.full((1, 8), number), sizes)
        assert found.shape == x.shape, name
        assert found.min() >= 0, name
        assert found.max() <= 1, name
