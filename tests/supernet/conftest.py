"""Fixtures for trainings that are as short as possible."""

from dataclasses import replace

import pytest

from nas.data import ImageDataset


def take_few(data: ImageDataset) -> ImageDataset:
    """Return data with 320 training images: an epoch has five steps."""
    return replace(data, train=data.train.take(slice(0, 320)))


@pytest.fixture(scope="session")
def few_digits(digits) -> ImageDataset:
    """Return digits with 320 training images."""
    return take_few(digits)
