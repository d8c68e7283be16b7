"""Augmentation compared with Pillow image by image, and with pixels that are moved by indexing."""

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
"""Tolerance: Pillow rounds to whole levels, sometimes more than once."""


@pytest.fixture
def images():
    """Return five images of noise, among them a dark one and one of a single colour."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(30, 220, (5, 12, 12, 3), np.uint8)
    pixels[1] //= 4
    pixels[2] = 77
    pixels[3, :6] = rng.integers(0, 60, (6, 12, 3))
    return pixels


def batch(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def by_pillow(images, change):
    changed = [np.asarray(change(Image.fromarray(image), i)) for i, image in enumerate(images)]
    return batch(np.stack(changed))


@pytest.mark.parametrize(
    ("adjust", "enhancer"),
    [
        (adjust_brightness, ImageEnhance.Brightness),
        (adjust_contrast, ImageEnhance.Contrast),
        (adjust_saturation, ImageEnhance.Color),
        (adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_tone_adjustments_equal_pillow(images, adjust, enhancer):
    expected = by_pillow(images, lambda image, i: enhancer(image).enhance(FACTORS[i]))
    result = adjust(batch(images), torch.tensor(FACTORS)).clamp(0, 1)
    torch.testing.assert_close(result, expected, rtol=0, atol=2 * STEP)


def test_level_operations_equal_pillow(images):
    exactly = {"rtol": 0, "atol": 1e-6}
    bits = [1, 3, 4, 6, 8]
    expected = by_pillow(images, lambda image, i: ImageOps.posterize(image, bits[i]))
    result = posterize(batch(images), torch.tensor(bits))
    torch.testing.assert_close(result, expected, **exactly)
    limits = [0, 60, 128, 200, 256]
    expected = by_pillow(images, lambda image, i: ImageOps.solarize(image, limits[i]))
    result = solarize(batch(images), (torch.tensor(limits) - 0.5) / 255)
    torch.testing.assert_close(result, expected, **exactly)
    expected = by_pillow(images, lambda image, i: ImageOps.equalize(image))
    torch.testing.assert_close(equalize(batch(images)), expected, **exactly)
    expected = by_pillow(images, lambda image, i: ImageOps.autocontrast(image))
    torch.testing.assert_close(autocontrast(batch(images)), expected, rtol=0, atol=STEP)


def test_translate_repeats_the_border(images):
    x = batch(images)
    result = translate(x, torch.full((5,), 2 / 12), 0)
    torch.testing.assert_close(result[..., :10], x[..., 2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        result[..., 10:], x[..., 11:].expand(-1, -1, -1, 2), rtol=0, atol=1e-5
    )
    result = translate(x, torch.full((5,), -3 / 12), 1)
    torch.testing.assert_close(result[:, :, 3:], x[:, :, :9], rtol=0, atol=1e-5)


def test_rotate_by_a_quarter_turn_equals_rot90(images):
    x = batch(images)
    quarter = torch.full((5,), math.pi / 2)
    torch.testing.assert_close(rotate(x, quarter), torch.rot90(x, 1, (2, 3)), rtol=0, atol=1e-4)
    torch.testing.assert_close(rotate(x, 0 * quarter), x, rtol=0, atol=1e-5)


def test_shear_moves_each_line_by_its_distance_from_the_centre(images):
    x = batch(images)
    result = shear(x, torch.full((5,), 2.0), 0)
    for row in range(12):
        by = 2 * row - 11  # 2 times the row's distance from the middle, 5.5.
        columns = (np.arange(12) + by).clip(0, 11)
        torch.testing.assert_close(result[:, :, row], x[:, :, row][..., columns], rtol=0, atol=1e-4)
    down = shear(x.transpose(2, 3), torch.full((5,), 2.0), 1)
    torch.testing.assert_close(down, result.transpose(2, 3), rtol=0, atol=1e-4)


def test_apply_randaugment_applies_the_drawn_operations_to_each_image(images):
    x = batch(images)
    names = list(RANDAUGMENT_OPERATIONS)
    first = torch.tensor(
        [names.index(n) for n in ("identity", "solarize", "rotate", "rotate", "color")]
    )
    second = torch.tensor([names.index(n) for n in ("identity", "rotate", *["identity"] * 3)])
    magnitudes = torch.tensor([[0.5, 0.5, 0.5, -0.5, 0.5]]).expand(2, -1)
    result = apply_randaugment(x, torch.stack([first, second]), magnitudes)
    assert torch.equal(result[0], x[0])
    half = torch.tensor([math.radians(15)])  # Half of the largest angle.
    torch.testing.assert_close(result[1:2], rotate(solarize(x[1:2], torch.tensor([0.5])), half))
    torch.testing.assert_close(result[2:4], rotate(x[2:4], torch.cat([half, -half])))
    torch.testing.assert_close(
        result[4:], adjust_saturation(x[4:], torch.tensor([1.45])).clamp(0, 1)
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_every_randaugment_operation_keeps_shape_and_range(channels):
    x = torch.rand(8, channels, 9, 9)
    magnitudes = torch.tensor([[1.0, -1.0] * 4])
    for number, name in enumerate(RANDAUGMENT_OPERATIONS):
        result = apply_randaugment(x, torch.full((1, 8), number), magnitudes)
        assert result.shape == x.shape, name
        assert result.min() >= 0, name
        assert result.max() <= 1, name
