"""Exported files on another device: those that a runtime loads there, and programs in C."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nas.deploy.formats.base import LoadedModel
from nas.latency.timing import Evaluate

if TYPE_CHECKING:
    from nas.runtimes.file_runtime import FileRuntime
    from nas.runtimes.files import File


class ModelOnDevice(LoadedModel):
    """A file that a runtime loads on a device; one image runs at a time.

    Args:
        runtime: name of the runtime.
        device: the device, a target with an address.
        threads: number of threads that run one operator.
        load: function that loads the file for images of a shape, `C x H x W`.
        inputs: function that returns the inputs of the file, by name, for an image `1 x C x H x W`.
    """

    def __init__(
        self,
        runtime: str,
        device: str,
        threads: int,
        load: Callable[[FileRuntime, Sequence[int]], File],
        inputs: Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]],
    ) -> None:
        from nas.latency.installed_runtimes import runtime_class
        from nas.runtimes.file_runtime import FileRuntime

        cls = runtime_class(runtime).for_target(device)
        assert issubclass(cls, FileRuntime)
        self._runtime = cls(target=cls.own_target(device), threads=threads)
        self._runtime.open()
        self._load, self._inputs = load, inputs
        self._file: File | None = None

    @property
    def versions(self) -> Mapping[str, str]:
        """See `LoadedModel.versions`."""
        return self._runtime.fingerprint.versions

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `LoadedModel.logits`."""
        file = self._loaded(images)
        return np.concatenate([file.run(self._inputs(image[None])) for image in images])

    def runner(self, image: NDArray[np.float32]) -> Callable[[], object]:
        """See `LoadedModel.runner`."""
        return partial(self._loaded(image).run, self._inputs(image))

    def evaluator(self, image: NDArray[np.float32]) -> Evaluate:
        """See `LoadedModel.evaluator`. The calls are timed on the device."""
        return self._loaded(image).evaluate

    def timing_context(self, threads: int) -> AbstractContextManager[None]:
        """See `LoadedModel.timing_context`."""
        return self._runtime.timing_context()

    def reload(self) -> bool:
        """See `LoadedModel.reload`."""
        if self._file is not None:
            self._file.reload()
        return True

    def _loaded(self, images: NDArray[np.float32]) -> File:
        if self._file is None:
            self._file = self._load(self._runtime, images.shape[1:])
        return self._file
