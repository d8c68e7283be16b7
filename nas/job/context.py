"""What a job file names, opened: data, spaces, the device's runtime and its latency table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nas.data import ImageDataset, load_dataset
from nas.errors import JobFileError
from nas.job.planning import JobPlan, measure_pace, planned
from nas.job.progress import Watch
from nas.job.settings import JobSettings
from nas.latency import (
    Kernel,
    LatencyTable,
    configured_runtime,
    open_runtime,
    space_kernels,
)
from nas.latency.runtime import Runtime
from nas.space import SearchSpace, library
from nas.supernet import TrainingSettings


@dataclass
class Job:
    """A job's settings with what they name, each opened when it is first asked for.

    Args:
        settings: of the job.
        watch: is told what happens.
        space_files: a run's own copies of its spaces, in the order of `settings.space`; without
            them spaces are found where the job file says.
        read_only: whether no file may be made or changed, which is enough for `plan`.
    """

    settings: JobSettings
    watch: Watch
    space_files: Sequence[Path] = ()
    read_only: bool = False

    def __post_init__(self) -> None:
        device = self.settings.device
        runtime = configured_runtime(
            device.runtime, target=device.target, threads=device.threads, dtype=device.dtype
        )
        runtime.check_settings()
        runtime.check_batch(device.batch)

    @property
    def batch(self) -> int:
        """Number of images that run at once in every latency of the job."""
        return self.settings.device.batch

    @cached_property
    def data(self) -> ImageDataset:
        """The images, decoded and split."""
        chosen = self.settings.data
        self.watch.begin("images", "image")
        return load_dataset(
            chosen.source,
            image_size=chosen.image_size,
            validation_fraction=chosen.validation_fraction,
            seed=self.settings.seed,
            on_bad_image=chosen.on_bad_image,
            progress=self.watch.advance,
            write_cache=not self.read_only,
        )

    @cached_property
    def spaces(self) -> dict[str, SearchSpace]:
        """The spaces by name, adapted to the data."""
        data = self.data
        found = {}
        named: Sequence[str | Path] = [each.name for each in self.settings.space]
        for source in self.space_files or named:
            space = library.load_definition(source)
            if space.name in found:
                raise JobFileError(
                    f"Two spaces of the job are called {space.name}.",
                    remedy="Give each [[space]] once, and each SPACE a name of its own.",
                )
            found[space.name] = space.adapt(
                image_size=data.image_size, channels=data.channels, classes=len(data.classes)
            )
        return found

    @cached_property
    def runtime(self) -> Runtime:
        """What compiles and times on the device."""
        device = self.settings.device
        return open_runtime(
            device.runtime, target=device.target, threads=device.threads, dtype=device.dtype
        )

    @cached_property
    def table(self) -> LatencyTable:
        """This device's latency table; made if there is none."""
        return LatencyTable.open_or_create(self.settings.device.tables, self.runtime)

    @cached_property
    def kernels(self) -> list[Kernel]:
        """Every kernel that the spaces can need, once each."""
        needed: dict[Kernel, None] = {}
        for space in self.spaces.values():
            needed.update(dict.fromkeys(space_kernels(space, self.runtime, self.batch)))
        return list(needed)

    def training(self, epochs: int | None = None) -> TrainingSettings:
        """How supernets are trained."""
        chosen = self.settings.training.model_dump(exclude_none=True)
        return TrainingSettings(**(chosen if epochs is None else {**chosen, "epochs": epochs}))

    def plan(self) -> JobPlan:
        """What the job would do and for how long, from quick measurements on this machine."""
        table = LatencyTable.find(self.settings.device.tables, self.runtime)
        missing = self.kernels if table is None else table.missing(self.kernels)
        pace = measure_pace(
            list(self.spaces.values()),
            self.data,
            self.training(),
            self.runtime,
            missing,
            seed=self.settings.seed,
            batch=self.batch,
        )
        return planned(self.settings, len(missing), pace)
