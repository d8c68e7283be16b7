"""`JobContext`: the settings of a job with the data, spaces, runtime and table that they name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from nas.data import ImageDataset, load_dataset
from nas.errors import JobFileError, RequestError
from nas.job.planning import JobPlan, estimate_plan, fixed_plan
from nas.job.progress import JobProgress
from nas.job.settings import JobSettings
from nas.job.stage_costs import StageCosts, measure_stage_costs
from nas.latency import (
    Kernel,
    LatencyTable,
    Runtime,
    configured_runtime,
    lacks_calibration,
    open_runtime,
    space_kernels,
)
from nas.run.record import DATA_OPTIONS, describe_image_changes, describe_shift
from nas.space import SearchSpace, load_definition
from nas.supernet.settings import TrainingSettings


@dataclass
class JobContext:
    """The settings of a job with the data, spaces, runtime and table that they name.

    Each of these is opened when it is first used.

    Args:
        settings: the settings of the job.
        progress: receives stages, progress and messages.
        space_files: a run's own copies of its space files, in the order of `settings.space`; by
            default spaces are found where the job file says.
        flip: whether training images are mirrored, as an experiment of the run decided; None
            before that, and if the job file or the source of the images decides.
        read_only: whether no file may be made or changed, which is enough for `plan`.

    Raises:
        RequestError: the runtime does not have the settings of the device, or no predictions for
            them.
    """

    settings: JobSettings
    progress: JobProgress
    space_files: Sequence[Path] = ()
    flip: bool | None = None
    read_only: bool = False

    def __post_init__(self) -> None:
        device = self.settings.device
        runtime = configured_runtime(
            device.runtime, target=device.target, threads=device.threads, dtype=device.dtype
        )
        runtime.check_settings()
        runtime.check_batch(device.batch)
        runtime.check_predictions()
        for figure in self.settings.search.figures:
            if figure not in runtime.figures:
                raise RequestError(
                    f"The search uses {figure}, which runtime '{device.runtime}' does not know.",
                    remedy="Leave its limit and objective out, or use peak_memory_bytes.",
                )

    @property
    def batch(self) -> int:
        """Number of images that run at once in every latency of the job."""
        return self.settings.device.batch

    @cached_property
    def data(self) -> ImageDataset:
        """The images, decoded and split."""
        settings = self.settings.data
        self.progress.begin("images", "image")
        data = load_dataset(
            settings.source,
            image_size=settings.image_size,
            seed=self.settings.seed,
            **settings.model_dump(include=DATA_OPTIONS),
            progress=self.progress.advance,
            write_cache=not self.read_only,
        )
        self.progress.note(data.worth_of_an_image)
        return data

    @cached_property
    def spaces(self) -> dict[str, SearchSpace]:
        """The search spaces by name, adapted to the images.

        Raises:
            JobFileError: two spaces have the same name.
        """
        data = self.data
        spaces: dict[str, SearchSpace] = {}
        named: Sequence[str | Path] = [each.name for each in self.settings.space]
        for source in self.space_files or named:
            space = load_definition(source)
            if space.name in spaces:
                raise JobFileError(
                    f"Two spaces of the job are called {space.name}.",
                    remedy="Give each [[space]] once, and each SPACE a name of its own.",
                )
            spaces[space.name] = space.adapt(
                image_size=data.image_size, channels=data.channels, classes=len(data.classes)
            )
        return spaces

    @cached_property
    def runtime(self) -> Runtime:
        """The runtime that compiles and times on the device."""
        device = self.settings.device
        return open_runtime(
            device.runtime, target=device.target, threads=device.threads, dtype=device.dtype
        )

    @cached_property
    def table(self) -> LatencyTable:
        """The device's latency table; it is made if there is none."""
        return LatencyTable.open_or_create(self.settings.device.tables, self.runtime)

    def open_table(self, name: str) -> LatencyTable:
        """Open the latency table of a run for reading; it may be that of another machine.

        Args:
            name: name of the table's file in the job's folder of tables.
        """
        path = Path(self.settings.device.tables)
        return LatencyTable.open(path if path.suffix == ".jsonl" else path / name)

    @cached_property
    def kernels(self) -> list[Kernel]:
        """Every kernel that the architectures of the spaces can need, once each."""
        kernels: dict[Kernel, None] = {}
        for space in self.spaces.values():
            kernels.update(dict.fromkeys(space_kernels(space, self.runtime, self.batch)))
        return list(kernels)

    def training_settings(
        self, epochs: float | None = None, seconds: float | None = None
    ) -> TrainingSettings:
        """Return the settings of supernet training.

        Args:
            epochs: number of epochs instead of the length that the job file sets.
            seconds: time budget of a supernet instead of that length.
        """
        settings = self.settings.training.model_dump(exclude_none=True)
        minutes = settings.pop("minutes", None)
        settings = {key: value for key, value in settings.items() if value != "auto"}
        if self.flip is not None:
            settings["flip"] = self.flip
        if seconds is None and epochs is None and minutes is not None:
            seconds = 60 * minutes
        if epochs is not None:
            settings["epochs"] = epochs
        return TrainingSettings(**settings, seconds=seconds)

    def plan(self, spent_on_table_s: float | None = None) -> JobPlan:
        """Return what the job would do and for how long, from quick measurements.

        Args:
            spent_on_table_s: seconds that earlier starts of a run spent on its latency table; None
                for a job that starts. A run that goes on has a plan even if its budget is spent.
        """
        missing, costs = self.measure_costs()
        if spent_on_table_s is not None:
            costs = replace(costs, table_s=costs.table_s + spent_on_table_s)
        is_start = spent_on_table_s is None
        plan = estimate_plan(self.settings, missing, costs, must_fit=is_start)
        return plan.model_copy(update={"image_changes": self.image_changes})

    @property
    def needs_mirroring_experiment(self) -> bool:
        """Whether neither the job file nor the source says if training images are mirrored."""
        return self.settings.training.flip == "auto" and self.data.flip_preserves_class is None

    @property
    def image_changes(self) -> str:
        """How training images are mirrored and shifted, as a sentence without its full stop."""
        settings = self.training_settings()
        shift = settings.resolve_shift(self.data)
        if self.flip is None and self.needs_mirroring_experiment:
            return (
                f"training images are {describe_shift(shift)}; an experiment at the start decides "
                "whether they are mirrored"
            )
        return describe_image_changes(settings.resolve_flip(self.data), shift)

    def measure_costs(self) -> tuple[int, StageCosts]:
        """Return the number of kernels that the table lacks, and the measured costs of all work."""
        start = time.perf_counter()
        spaces, data = list(self.spaces.values()), self.data
        table = LatencyTable.find(self.settings.device.tables, self.runtime)
        missing = self.kernels if table is None else table.missing(self.kernels)
        opened_s = time.perf_counter() - start
        self.progress.begin("plan", "measurement")
        costs = measure_stage_costs(
            spaces,
            data,
            self.training_settings(),
            self.runtime,
            missing,
            seed=self.settings.seed,
            sampler=self.settings.search.sampler,
            batch=self.batch,
            lacks_dispatch=(
                bool(self.runtime.dispatch_parts) if table is None else table.lacks_dispatch()
            ),
            lacks_calibration=table is None or lacks_calibration(table, spaces, self.batch),
        )
        self.progress.advance(1, 1)
        if fixed_plan(self.settings, [], 0) is None:  # The job measures the costs itself.
            opened_s = time.perf_counter() - start
        return len(missing), replace(costs, prepare_s=opened_s)
