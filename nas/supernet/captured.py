"""Training steps that a GPU repeats as one CUDA graph.

The host launches the kernels of a step one after the other. For a small network that takes several
times as long as the kernels themselves. A CUDA graph is launched at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_WARM_UP_STEPS = 3
"""Steps before the capture, in which libraries choose their kernels and allocate what they keep."""


class CapturedStep:
    """A step of a module on a batch; from the second call on, the kernels of the first one.

    What the step allocates stays where it is: the returned tensor and the gradients are overwritten
    by the next call. All batches must have the shapes of the first one.

    Args:
        step: computes the gradients of the module on images and labels on a GPU, from gradients
            that are None, and returns figures. It must not wait for the GPU.
        module: the module. Its buffers change as if each call were one step.
    """

    def __init__(self, step: Callable[[Tensor, Tensor], Tensor], module: nn.Module) -> None:
        self._step, self._module = step, module
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Do the step on images `N x C x H x W` and labels `N`, and return its figures."""
        if self._graph is None:
            self._graph = self._capture(images, labels)
        else:
            self._images.copy_(images)
            self._labels.copy_(labels)
        self._graph.replay()
        return self._figures

    def _capture(self, images: Tensor, labels: Tensor) -> torch.cuda.CUDAGraph:
        self._images, self._labels = images.clone(), labels.clone()
        before = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_STEPS):
                self._step(self._images, self._labels)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # A loader of images may use the GPU in another thread meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._figures = self._step(self._images, self._labels)
        for buffer, value in before:
            buffer.copy_(value)
        return graph
