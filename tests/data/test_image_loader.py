"""Loaders: the batches are the same whether images are resident or streamed from disk."""

import math

import torch

from nas.data import decoding, load_dataset
from nas.data.batches import TrainingBatches
from nas.data.image_cache import cache_folder
from nas.data.image_loader import PrefetchLoader, ResidentLoader, make_loader
from tests.data.folders import write_noise

CPU = torch.device("cpu")


def test_prefetched_batches_equal_resident_ones_in_any_order_of_steps(
    tmp_path, empty_cache, monkeypatch
):
    images = write_noise(tmp_path / "images", (9, 9, 3))
    in_memory = load_dataset(images, image_size=8)
    for file in cache_folder().iterdir():
        file.unlink()
    monkeypatch.setattr(decoding, "MAX_BYTES_IN_MEMORY", 0)
    on_disk = load_dataset(images, image_size=8)
    settings = {"batch_size": 8, "seed": 3, "shift": 1, "flip": True, "colour": 0.3, "device": CPU}
    resident, streamed = (TrainingBatches(data, **settings) for data in (in_memory, on_disk))
    assert isinstance(make_loader(on_disk.train, CPU, resident._batch_indices), PrefetchLoader)
    assert isinstance(make_loader(in_memory.train, CPU, resident._batch_indices), ResidentLoader)
    # In order across two epochs, and then back, as a resumed training would ask.
    for step in [*range(math.ceil(2 * resident.steps_per_epoch) + 1), 2, 3, 0]:
        for ours, theirs in zip(streamed.batch(step), resident.batch(step), strict=True):
            assert torch.equal(ours, theirs), step
