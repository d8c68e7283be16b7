import pytest
import torch
from safetensors.torch import save_file

from nas.pretrained import read_weights
from tests.pretrained.small_network import SPACE


@pytest.fixture
def read(tmp_path):
    """Return a function that saves an object as a file and reads it as weights."""

    def read(content, name="weights.pth", **options):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif name.endswith(".safetensors"):
            save_file({key: tensor.contiguous() for key, tensor in content.items()}, path)
        else:
            torch.save(content, path)
        return read_weights(path, spaces=[SPACE], **{"conventions": "torch", **options})

    return read
