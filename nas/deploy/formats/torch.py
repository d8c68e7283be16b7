"""Format `torch`: weights as safetensors, and a plain `nn.Module` that needs nothing of ours.

With this package, a folder with the files is loaded by

    import nas
    model = nas.load_model("results/quickstart/models/jf2a")
    logits = model.logits(images)

and without it by

    import network
    model = network.load("network.safetensors")
    logits = model(images)
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats.base import LoadedModel, ModelFormat

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nas.deploy.model import TrainedModel
    from nas.quantisation.network import QuantisedNetwork


class Torch(ModelFormat):
    """Weights as safetensors and a plain `nn.Module`. See `ModelFormat`."""

    name = "torch"
    file_name = "network.safetensors"
    companions = ("network.py",)
    packages = ("torch", "safetensors")
    tolerance = 1e-4

    def write(self, model: TrainedModel, quantised: QuantisedNetwork | None, path: Path) -> None:
        """See `ModelFormat.write`."""
        from nas.deploy.saved_model import write_model

        write_model(model, path)

    def load(self, path: Path, threads: int = 1) -> TorchModel:
        """Load the weights into the class in `network.py`, without the rest of this package."""
        source = path.with_name("network.py")
        return TorchModel(runpy.run_path(str(source))["load"](str(path)), threads)


class TorchModel(LoadedModel):
    """A network in torch.

    Args:
        network: the network.
        threads: number of threads that run it.
    """

    def __init__(self, network: nn.Module, threads: int) -> None:
        self._network, self._threads = network, threads

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        import torch

        with torch.inference_mode():
            return self._network(torch.from_numpy(images)).numpy()

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`. Sets the number of threads of torch in this process."""
        import torch

        torch.set_num_threads(self._threads)
        x = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)

        def run() -> Tensor:
            with torch.inference_mode():
                return self._network(x)

        return run
