import pytest
import torch

from nas.supernet import load

# Two threads that wait for each other are many times slower where other tests run beside them.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits():
    return load("digits", validation_fraction=0.5)
