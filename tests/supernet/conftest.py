"""Fixtures for trainings that are as short as possible."""

from dataclasses import replace

import pytest

from nas.data import ImageDataset


@pytest.fixture(scope="session")
def few_digits(digits) -> ImageDataset:
    """Return digits with 320 training images: an epoch has five steps."""
    return replace(digits, train=digits.train.take(slice(0, 320)))
