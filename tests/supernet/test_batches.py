import numpy as np
import torch

from nas.supernet.batches import TrainingBatches, in_order

CPU = torch.device("cpu")


def batches(data, **changes):
    settings = {"batch_size": 64, "seed": 0, "shift": 0, "flip": False, "device": CPU} | changes
    return TrainingBatches(data, **settings)


def expected(data, pixels):
    scaled = pixels / 255
    mean = (data.train.pixels / 255).mean((0, 1, 2))
    std = (data.train.pixels / 255).std((0, 1, 2))
    return ((scaled - mean) / std).transpose(0, 3, 1, 2)


def test_in_order_is_everything_normalised(digits):
    found = list(in_order(digits.search, digits, 100, CPU))
    images = torch.cat([x for x, _ in found])
    np.testing.assert_allclose(images, expected(digits, digits.search.pixels), atol=1e-5)
    assert torch.cat([y for _, y in found]).tolist() == digits.search.labels.tolist()


def test_an_epoch_shows_an_image_at_most_once_and_epochs_differ(digits):
    made = batches(digits)
    assert made.steps_per_epoch == len(digits.train) // 64
    known = {image.tobytes(): i for i, image in enumerate(digits.train.pixels)}

    def shown(epoch):
        steps = range(epoch * made.steps_per_epoch, (epoch + 1) * made.steps_per_epoch)
        found = []
        for step in steps:
            images, labels = made.batch(step)
            pixels = images.permute(0, 2, 3, 1).numpy() * digits.std + digits.mean
            rounded = np.rint(pixels * 255).astype(np.uint8)
            positions = [known[image.tobytes()] for image in rounded]
            assert labels.tolist() == digits.train.labels[positions].tolist()
            found += positions
        return found

    first, second = shown(0), shown(1)
    assert len(set(first)) == len(first) == made.steps_per_epoch * 64
    assert first != second


def test_a_batch_depends_on_seed_and_step_alone(digits):
    a = batches(digits, shift=1, flip=True)
    late = a.batch(30)[0]
    a.batch(2)
    assert torch.equal(late, batches(digits, shift=1, flip=True).batch(30)[0])
    assert not torch.equal(late, a.batch(31)[0])
    assert not torch.equal(late, batches(digits, shift=1, flip=True, seed=1).batch(30)[0])


def test_shifted_images_are_crops_with_the_border_repeated(digits):
    plain, labels = batches(digits).batch(5)
    moved, same = batches(digits, shift=2).batch(5)
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


def test_about_half_of_the_images_are_flipped(digits):
    plain, _ = batches(digits, batch_size=700).batch(0)
    mixed, _ = batches(digits, batch_size=700, flip=True).batch(0)
    same = (plain == mixed).flatten(1).all(1)
    flipped = (plain.flip(3) == mixed).flatten(1).all(1)
    assert (same | flipped).all()
    assert 0.4 < flipped.float().mean() < 0.6
