"""Where the time of each network goes, kernel by kernel, and the percentiles of its latency."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, Any

from pydantic import Field

from nas.errors import KernelError, NasError, RequestError, RunFolderError, TableError
from nas.files.documents import Count, Document, Fraction, Positive
from nas.kernels.kernel import Kernel
from nas.latency.breakdown import Launch, break_down
from nas.latency.networks import SAMPLE_SECONDS
from nas.latency.record import UNCERTAIN
from nas.latency.rounds import Latency
from nas.latency.timing import MEASURED, round_to_four_digits
from nas.run import candidates
from nas.run.run import Run
from nas.space.records import ArchitectureRecord
from nas.statistics import tail_quantile

if TYPE_CHECKING:
    from nas.latency import LatencyTable

MAX_DIFFERENCES = 6
"""Largest number of kernels that are named because they differ most between two dtypes."""

UNKNOWN_STAGE = "network"
"""Stage of all kernels if the runtime does not know the blocks of kernels."""


class KernelTime(Document):
    """A kernel of a latency table.

    Attributes:
        text: canonical text of the kernel.
        label: short text, such as "pointwise 24→144, 16 px".
        warm_us: latency with its weights in the caches.
        cold_us: latency with its weights in no cache, by their size; None for a kernel without
            weights, and if the table does not know it.
        uncertain: `unstable` or `disturbed` if its timings are; else empty.
        basis: `measured`, or `estimated: <by what>`.
        note: in which form the device runs it if it has no code for it; else empty.
    """

    text: str
    label: str
    warm_us: float
    cold_us: float | None
    uncertain: str
    basis: str
    note: str


class TableTimes(Document):
    """The predicted latency of a network as a sum, by the table of one dtype.

    `start_us`, `correction_us`, the warm latencies of all kernels, `cold_us` and `launch_us` add up
    to `predicted_us`. The tuples have an item for each launch, in order.

    Attributes:
        dtype: type of weights and activations.
        predicted_us: predicted latency.
        start_us: cost of entering the network.
        correction_us: what the correction of the table adds.
        kernels: positions in `TimesSection.kernels`.
        cold_us: additional time because weights are not in the caches.
        launch_us: cost of the launch; below 0 for a kernel that runs beside others.
        stages: name of each stage with the number of its launches.
    """

    dtype: str
    predicted_us: float
    start_us: float
    correction_us: float
    kernels: tuple[Count, ...]
    cold_us: tuple[float, ...]
    launch_us: tuple[float, ...]
    stages: tuple[tuple[str, Count], ...]

    @property
    def waiting_us(self) -> float:
        """Time that the network waits for weights that are not in the caches."""
        return sum(self.cold_us)

    @property
    def dispatch_us(self) -> float:
        """Time of the start and of all launches."""
        return self.start_us + sum(self.launch_us)

    @property
    def kernels_us(self) -> float:
        """Time of all kernels with warm caches."""
        others_us = self.waiting_us + self.dispatch_us + self.correction_us
        return self.predicted_us - others_us


class KernelDifference(Document):
    """Equal operations of one stage that take different time in two dtypes.

    Attributes:
        label: short text of the operations.
        stage: stage of the network.
        times_us: time of all of them with their launches in each dtype, in the order of
            `NetworkTimes.tables`.
    """

    label: str
    stage: str
    times_us: tuple[float, float]


class Percentiles(Document):
    """Percentiles of the latency of a whole network, of one sample a round at whatever speed.

    A percentile that needs more samples (`nas.statistics.has_tail`) is left out: the 95% one of
    fewer than 20 samples, and the 99% one of fewer than 100.

    Attributes:
        samples: number of samples.
        median_us, p95_us, p99_us: the percentiles.
        slowest_us: the slowest sample.
    """

    samples: Count
    median_us: Positive
    p95_us: Positive | None
    p99_us: Positive | None
    slowest_us: Positive

    @classmethod
    def of(cls, samples_us: Sequence[float]) -> Percentiles:
        """Return the percentiles of one sample or more."""
        return cls(
            samples=len(samples_us),
            median_us=round_to_four_digits(statistics.median(samples_us)),
            p95_us=_rounded_tail(samples_us, 0.95),
            p99_us=_rounded_tail(samples_us, 0.99),
            slowest_us=max(samples_us),
        )


class PooledSlowdown(Document):
    """How much slower than the median of its network a sample was, of all networks together.

    Attributes:
        networks: number of networks.
        samples: number of samples.
        p95, p99: percentiles of the sample over the median; None as in `Percentiles`.
    """

    networks: Count
    samples: Count
    p95: Positive | None
    p99: Positive | None


class NetworkTimes(Document):
    """One network that can be chosen.

    Attributes:
        id: ID of the candidate, or name of the published network.
        tables: the sums by the table of its own dtype and, in a run with two, by that of the other.
        problem: why there are no sums; empty if there are.
        differences: the operations whose times differ most between the two dtypes.
        unmatched_us: time of the kernels that only one dtype has, in each; None for one dtype.
        latency: percentiles of its timings as a whole network; None if it was not timed, or has
            one timing.
        files: percentiles of the timings of each exported file, by format.
    """

    id: str
    tables: tuple[TableTimes, ...] = ()
    problem: str = ""
    differences: tuple[KernelDifference, ...] = ()
    unmatched_us: tuple[float, float] | None = None
    latency: Percentiles | None = None
    files: dict[str, Percentiles] = Field(default_factory=dict)


class TimesSection(Document):
    """Where the time goes.

    Attributes:
        kernels: every kernel of the networks, once.
        networks: the networks, the fastest first.
        tables: name of the file of each latency table by dtype.
        problem: why no network has its kernels; empty if there is no such reason.
        batch: number of images that run at once.
        sample_seconds: shortest duration of a sample of a whole network.
        slowdown: how samples of all networks spread; None without timings.
        uncertain, estimated: share of all launches whose kernel is uncertain, or estimated.
    """

    kernels: tuple[KernelTime, ...]
    networks: tuple[NetworkTimes, ...]
    tables: dict[str, str]
    problem: str
    batch: Count
    sample_seconds: float = SAMPLE_SECONDS
    slowdown: PooledSlowdown | None
    uncertain: Fraction
    estimated: Fraction


Positions = dict[tuple[str, Kernel], int]
"""Positions in `TimesSection.kernels` by the dtype of the table and the kernel."""


def times_section(run: Run) -> TimesSection | None:
    """Return where the time of the members of the front and of the trained networks goes.

    Kernels come from the run's latency table, which lies outside of the run folder. Without it, the
    section says why, and has the timings of whole networks alone. The run's copies of the files of
    its spaces are loaded, which are code.

    Returns:
        The section; None if there is no network to choose.
    """
    latencies, models = run.latencies, {model.record.digest: model for model in run.models}
    # By digest: the ID, the choices and the latency of each network.
    networks: dict[str, tuple[str, ArchitectureRecord, float]] = {
        digest: (model.record.id, model.record.architecture, model.latency_us or math.inf)
        for digest, model in models.items()
    }
    for member in candidates.of_table(run.front):
        networks[member.digest] = member.id, member.architecture, member.latency_us
    if not networks:
        return None
    tables, problem = _tables(run)
    positions: Positions = {}
    described = []
    for digest, (name, record, _) in sorted(networks.items(), key=lambda item: item[1][2]):
        samples = _samples(latencies.get(digest, Latency(())))
        files = models[digest].files if digest in models else ()
        described.append(
            NetworkTimes(
                id=name,
                latency=Percentiles.of(samples) if len(samples) > 1 else None,
                files={f.format: Percentiles.of(f.latency.first_us) for f in files if f.latency},
                **(_kernel_times(run, record, tables, positions) if tables else {}),
            )
        )
    if tables and not positions:
        problem = (
            f"{described[0].problem} If this is not the latency table of the run: a report that is "
            "made in the folder in which the job was run shows the kernels."
        )
    kernels = [_kernel_time(tables[dtype], kernel) for dtype, kernel in positions]
    launched = [kernels[at] for each in described for t in each.tables for at in t.kernels]
    return TimesSection(
        kernels=tuple(kernels),
        networks=tuple(described),
        tables={dtype: table.path.name for dtype, table in tables.items()},
        problem=problem,
        batch=run.settings.device.batch,
        slowdown=_pooled([latencies[digest] for digest in networks if digest in latencies]),
        uncertain=_share(bool(each.uncertain) for each in launched),
        estimated=_share(each.basis != MEASURED for each in launched),
    )


def _tables(run: Run) -> tuple[dict[str, LatencyTable], str]:
    """Return the latency tables by dtype, and why there are none."""
    try:
        return run.tables, ""
    except TableError as error:
        return {}, (
            f"{error.message} The table of a run is not in its folder: a report that is made in "
            "the folder in which the job was run shows the kernels."
        )
    except (RequestError, RunFolderError) as error:
        return {}, error.message


def _kernel_time(table: LatencyTable, kernel: Kernel) -> KernelTime:
    record, warm_us = table.timed_record(kernel), table.latency_us(kernel)
    waiting_us = table.dispatch.waiting_us(table.weight_bytes(kernel))
    return KernelTime(
        text=kernel.text,
        label=kernel_label(kernel),
        warm_us=warm_us,
        cold_us=round_to_four_digits(warm_us + waiting_us) if waiting_us else None,
        uncertain=record.status if record.status in UNCERTAIN else "",
        basis=record.basis,
        note=table.runtime.kernel_note(kernel),
    )


def _kernel_times(
    run: Run,
    record: ArchitectureRecord,
    tables: Mapping[str, LatencyTable],
    positions: Positions,
) -> dict[str, Any]:
    """Return the fields of `NetworkTimes` that come from the tables, and add to the positions."""
    batch = run.settings.device.batch
    try:
        architecture = run.architecture_of(record)
        own = run.dtype_of(architecture)
        sums = {own: break_down(tables[own], architecture, batch)}
    except NasError as error:
        return {"problem": error.message}
    for dtype, table in tables.items():
        if dtype != own:
            # Where the other dtype lacks a kernel, there is nothing to compare.
            with suppress(KernelError):
                sums[dtype] = break_down(table, architecture, batch)
    names = [name.partition(".")[0] for _, name in architecture.graph.blocks]
    stages = {dtype: [_stage(each, names) for each in sums[dtype].launches] for dtype in sums}
    fields: dict[str, Any] = {
        "tables": tuple(
            TableTimes(
                dtype=dtype,
                predicted_us=parts.prediction.latency_us,
                start_us=parts.start_us,
                correction_us=_rounded(parts.correction_us),
                kernels=tuple(
                    positions.setdefault((dtype, each.kernel), len(positions))
                    for each in parts.launches
                ),
                cold_us=tuple(_rounded(each.cold_us) for each in parts.launches),
                launch_us=tuple(_rounded(each.launch_us) for each in parts.launches),
                stages=tuple((name, len(list(same))) for name, same in groupby(stages[dtype])),
            )
            for dtype, parts in sums.items()
        )
    }
    if len(sums) == 2:
        first, second = (
            _times_by_operation(parts.launches, stages[dtype]) for dtype, parts in sums.items()
        )
        fields["differences"], fields["unmatched_us"] = _differences(first, second)
    return fields


def _stage(launch: Launch, names: Sequence[str]) -> str:
    return UNKNOWN_STAGE if launch.block is None else names[launch.block]


def _times_by_operation(
    launches: Sequence[Launch], stages: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Return microseconds by stage and operation, without what is fused into the operations."""
    times: dict[tuple[str, str], float] = {}
    for each, stage in zip(launches, stages, strict=True):
        key = stage, _operation(each.kernel)
        us = each.warm_us + each.cold_us + each.launch_us
        times[key] = _rounded(times.get(key, 0.0) + us)
    return times


def _differences(
    first: Mapping[tuple[str, str], float], second: Mapping[tuple[str, str], float]
) -> tuple[tuple[KernelDifference, ...], tuple[float, float]]:
    """Return the operations that differ most between two dtypes, and the time of all others.

    Operations are equal if their stages, kinds and maps are, apart from what is fused into them: a
    dtype can run an addition by itself that the other one fuses, and pad channels.
    """
    both = [
        KernelDifference(label=label, stage=stage, times_us=(us, second[stage, label]))
        for (stage, label), us in first.items()
        if (stage, label) in second
    ]
    both.sort(key=lambda each: -abs(each.times_us[0] - each.times_us[1]))
    alone = (
        _rounded(sum(us for key, us in first.items() if key not in second)),
        _rounded(sum(us for key, us in second.items() if key not in first)),
    )
    return tuple(both[:MAX_DIFFERENCES]), alone


def _samples(latency: Latency) -> list[float]:
    """Return the first sample of each timing, at whatever speed of the core."""
    return [timing.typical_us for timing in latency.rounds]


def _pooled(latencies: Iterable[Latency]) -> PooledSlowdown | None:
    """Return how the samples of networks that were timed more than once spread."""
    samples = [own for own in map(_samples, latencies) if len(own) > 1]
    if not samples:
        return None
    ratios = [us / statistics.median(own) for own in samples for us in own]
    return PooledSlowdown(
        networks=len(samples),
        samples=len(ratios),
        p95=_rounded_tail(ratios, 0.95),
        p99=_rounded_tail(ratios, 0.99),
    )


def _rounded_tail(values: Sequence[float], share: float) -> float | None:
    quantile = tail_quantile(values, share)
    return quantile if quantile is None else round_to_four_digits(quantile)


def _rounded(us: float) -> float:
    """Return microseconds with as many digits as sums need."""
    return float(f"{us:.6g}")


def _share(flags: Iterable[bool]) -> float:
    values = list(flags)
    return sum(values) / len(values) if values else 0.0


def _kind(kernel: Kernel) -> str:
    """Return the detailed kind in words, without the batch size; the step of a bare copy."""
    kind = kernel.detailed_kind.removesuffix(f" batch{kernel.batch}")
    if kind == "copy" and kernel.epilogue:
        kind = kernel.epilogue[0].partition(":")[0]
    return kind.replace("_", " ")


def kernel_label(kernel: Kernel) -> str:
    """Return a short text: kind, channels in and out, and the side of the maps in pixels.

    Example:
        >>> kernel_label(Kernel.parse("conv2d 24x16x16 -> 144x16x16 k1 s1 p0 g1 bias relu6"))
        'pointwise 24→144, 16 px'
        >>> kernel_label(Kernel.parse("concat 58x14x14 58x14x14 -> 116x14x14 shuffle2"))
        'concat 58+58→116, 14 px'
    """
    operands = kernel.inputs
    parts, whole = "+".join(str(each.channels) for each in operands), str(kernel.output[0])
    widths = dict.fromkeys((parts, whole))
    label = f"{_kind(kernel)} {'→'.join(widths)}{_sides(kernel)}"
    fused = [step.partition(":")[0] for step in kernel.epilogue]
    joined = [step for step in fused if step in ("add", "multiply")]
    return " + ".join([label, *(joined if kernel.kind != "copy" else [])])


def _operation(kernel: Kernel) -> str:
    """Return kind and maps of a kernel in words, such as `pointwise, 16 px`."""
    return _kind(kernel) + _sides(kernel)


def _sides(kernel: Kernel) -> str:
    """Return the sides of the maps that a kernel reads and writes; nothing for vectors."""
    sides = dict.fromkeys(_side(shape) for shape in (kernel.inputs[0].shape, kernel.output))
    return "" if sides == {"1": None} else f", {'→'.join(sides)} px"


def _side(shape: tuple[int, int, int]) -> str:
    _, height, width = shape
    return str(height) if height == width else f"{height}x{width}"
