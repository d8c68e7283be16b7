import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from nas.data import ImageDataset, Images
from nas.data.batches import (
    TrainingBatches,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    sequential_batches,
    share_of_batch,
)
from nas.errors import RequestError

CPU = torch.device("cpu")


def make_batches(data, **changes):
    settings = {"batch_size": 64, "seed": 0, "shift": 0, "flip": False, "device": CPU} | changes
    return TrainingBatches(data, **settings)


def normalize_with_numpy(data, pixels):
    scaled = pixels / 255
    mean = (data.train.pixels / 255).mean((0, 1, 2))
    std = (data.train.pixels / 255).std((0, 1, 2))
    return ((scaled - mean) / std).transpose(0, 3, 1, 2)


def test_sequential_batches_yield_all_images_normalised(digits):
    batches = list(sequential_batches(digits.search, digits, 100, CPU))
    images = torch.cat([x for x, _ in batches])
    np.testing.assert_allclose(
        images, normalize_with_numpy(digits, digits.search.pixels), atol=1e-5
    )
    assert torch.cat([y for _, y in batches]).tolist() == digits.search.labels.tolist()


def positions_of(data, batches, step):
    """Return the positions of a batch's images among the training images, by their pixels."""
    position_of = {image.tobytes(): i for i, image in enumerate(data.train.pixels)}
    images, labels = batches.batch(step)
    pixels = images.permute(0, 2, 3, 1).numpy() * data.std + data.mean
    rounded = np.rint(pixels * 255).astype(np.uint8)
    positions = [position_of[image.tobytes()] for image in rounded]
    assert labels.tolist() == data.train.labels[positions].tolist()
    return positions


@pytest.mark.parametrize("batch_size", [2, 7, 27, 33, 48, 64, 100])
def test_epoch_has_each_image_once_in_batches_of_one_size(batch_size):
    data = random_colours(count=64)
    batches = make_batches(data, batch_size=batch_size)
    epochs = 3
    assert batches.batch_size == min(batch_size, 64)
    assert batches.steps_per_epoch == 64 / batches.batch_size
    steps = math.ceil(epochs * 64 / batches.batch_size)
    seen = [positions_of(data, batches, step) for step in range(steps)]
    assert {len(batch) for batch in seen} == {batches.batch_size}
    stream = [position for batch in seen for position in batch]
    orders = [stream[64 * epoch : 64 * (epoch + 1)] for epoch in range(epochs)]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len(set(map(tuple, orders))) == epochs


def test_processes_share_batches_that_two_epochs_fill():
    data = random_colours(count=30)
    whole = make_batches(data, batch_size=8)
    shares = [make_batches(data, batch_size=8, rank=rank, world_size=4) for rank in range(4)]
    for step in (3, 7, 3):
        images, labels = whole.batch(step)
        parts = [share.batch(step) for share in shares]
        assert torch.equal(torch.cat([part[0] for part in parts]), images)
        assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_batch_depends_on_seed_and_step_alone(digits):
    a = make_batches(digits, shift=1, flip=True)
    late = a.batch(30)[0]
    a.batch(2)
    assert torch.equal(late, make_batches(digits, shift=1, flip=True).batch(30)[0])
    assert not torch.equal(late, a.batch(31)[0])
    assert not torch.equal(late, make_batches(digits, shift=1, flip=True, seed=1).batch(30)[0])


def test_shift_crops_images_with_the_border_repeated(digits):
    plain, labels = make_batches(digits).batch(5)
    moved, same = make_batches(digits, shift=2).batch(5)
    assert torch.equal(labels, same)
    used = set()
    for before, after in zip(plain.numpy(), moved.numpy(), strict=True):
        wide = np.pad(before, ((0, 0), (2, 2), (2, 2)), mode="edge")
        crops = {
            (dy, dx): wide[:, 2 + dy : 10 + dy, 2 + dx : 10 + dx]
            for dy in range(-2, 3)
            for dx in range(-2, 3)
        }
        fitting = [shift for shift, crop in crops.items() if np.array_equal(crop, after)]
        assert fitting
        used.add(fitting[0])
    assert len(used) > 10


def test_flip_mirrors_about_half_of_the_images(digits):
    plain, _ = make_batches(digits, batch_size=700).batch(0)
    mixed, _ = make_batches(digits, batch_size=700, flip=True).batch(0)
    same = (plain == mixed).flatten(1).all(1)
    flipped = (plain.flip(3) == mixed).flatten(1).all(1)
    assert (same | flipped).all()
    assert 0.4 < flipped.float().mean() < 0.6


def random_colours(count=64, size=8):
    """Return a dataset of random colours."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(40, 200, (count, size, size, 3), np.uint8)
    images = Images(pixels, np.arange(count) % 2)
    return ImageDataset("colours", ("a", "b"), images, images, images, images, True)


def pixels_of(data, images):
    """Return the pixels in [0, 1] of normalised images."""
    return images.permute(0, 2, 3, 1).numpy() * data.std + data.mean


def test_colour_changes_only_brightness_and_contrast_of_grey_images(digits):
    """Each pixel p becomes (b * p - level) * c + level, with factors b and c."""
    plain = pixels_of(digits, make_batches(digits).batch(0)[0])[..., 0]
    jittered = pixels_of(digits, make_batches(digits, colour=0.2).batch(0)[0])[..., 0]
    for before, after in zip(plain, jittered, strict=True):
        inside = (after > 1e-3) & (after < 1 - 1e-3)
        slope, offset = np.polyfit(before[inside], after[inside], 1)
        assert 0.8 * 0.8 - 1e-3 <= slope <= 1.2 * 1.2 + 1e-3
        np.testing.assert_allclose(after[inside], slope * before[inside] + offset, atol=1e-4)


@pytest.mark.parametrize(
    ("adjust", "enhancer"),
    [
        (adjust_brightness, ImageEnhance.Brightness),
        (adjust_contrast, ImageEnhance.Contrast),
        (adjust_saturation, ImageEnhance.Color),
    ],
)
def test_changes_of_colour_equal_pillow(adjust, enhancer):
    """Pillow rounds to whole levels, sometimes more than once."""
    factors = (0.1, 0.6, 1.0, 1.3, 1.9)
    pixels = random_colours(count=5).train.pixels
    changed = [
        np.asarray(enhancer(Image.fromarray(image)).enhance(factor))
        for image, factor in zip(pixels, factors, strict=True)
    ]
    images, expected = (
        torch.from_numpy(each).permute(0, 3, 1, 2) / 255 for each in (pixels, np.stack(changed))
    )
    result = adjust(images, torch.tensor(factors)).clamp(0, 1)
    torch.testing.assert_close(result, expected, rtol=0, atol=2.02 / 255)


def test_share_of_batch_is_the_same_number_of_images_for_each_process():
    assert share_of_batch(7, 0, 1) == slice(0, 7)
    assert [share_of_batch(6, rank, 2) for rank in range(2)] == [slice(0, 3), slice(3, 6)]
    for count in (2, 7):
        with pytest.raises(RequestError, match=f"batch of {count} images cannot be shared by 2"):
            share_of_batch(count, 1, 2)


def test_alternating_flips_mirror_each_image_in_every_other_epoch():
    data = random_colours(count=50)
    batches = make_batches(data, batch_size=16, flip=True, alternating=True)
    position_of = {image.tobytes(): i for i, image in enumerate(data.train.pixels)}
    position_of |= {image[:, ::-1].tobytes(): ~i for i, image in enumerate(data.train.pixels)}
    stream = []
    for step in range(13):
        pixels = batches.batch(step)[0].permute(0, 2, 3, 1).numpy() * data.std + data.mean
        rounded = np.rint(pixels * 255).astype(np.uint8)
        stream += [position_of[image.tobytes()] for image in rounded]
    epochs = [sorted(stream[50 * number : 50 * (number + 1)]) for number in range(4)]
    assert epochs[0] == epochs[2] == sorted(~position for position in epochs[1])
    assert epochs[1] == epochs[3]
    assert 10 < sum(position < 0 for position in epochs[0]) < 40
    whole = make_batches(data, batch_size=16, flip=True, alternating=True, rank=1, world_size=2)
    assert torch.equal(whole.batch(5)[0], batches.batch(5)[0][8:])
