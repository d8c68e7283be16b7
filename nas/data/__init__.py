"""Image datasets: sources, decoding, the cache, splits, and augmented training batches.

A new kind of dataset is a module in `nas.data.sources`. Importing `nas.data` does not import torch;
`nas.data.batches` does.
"""

from nas.data.dataset import ImageDataset, Images, Part
from nas.data.loading import load_dataset

__all__ = ["ImageDataset", "Images", "Part", "load_dataset"]
