"""The lines of a latency table: the header, timed kernels and dispatch costs, and corrections."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AliasChoices, Field, JsonValue, model_validator

from nas.errors import TableError
from nas.files.documents import Count, Document, Format
from nas.latency.core_speed import READING
from nas.latency.device import Fingerprint, Object, Text
from nas.latency.fused_blocks import Entry, Exit, FusedBlock, Place
from nas.latency.rounds import ONCE, ROUNDS, Latency, Policy
from nas.latency.timing import (
    ESTIMATED,
    LONGEST_US,
    MEASURED,
    SAMPLE_SECONDS,
    SAMPLES,
    SHORTEST_US,
    Timing,
    round_to_four_digits,
)

SCHEMA = 6

HEADER_START = b'{"schema": 6, "record": "header", "processor": "'
"""How a header starts as it is written."""

MAX_SAMPLES = 12
"""Largest number of samples in a record."""

DISTURBED = "disturbed"
UNSTABLE = "unstable"
UNCERTAIN = (DISTURBED, UNSTABLE)
"""Statuses of records that predict, flagged."""

Microseconds = Annotated[float, Field(ge=SHORTEST_US, le=LONGEST_US)]
"""Microseconds within the limits of a latency."""


def new_header(
    device: Fingerprint, basis: str = MEASURED, reading: str = READING
) -> dict[str, Any]:
    """Return the first line of a new table; `basis` and `reading` are those of its runtime."""
    measured = {"samples": SAMPLES, "rounds": ROUNDS, "sample_seconds": SAMPLE_SECONDS}
    timing = {**measured, "reading": reading} if basis == MEASURED else {"basis": basis}
    return {"schema": SCHEMA, "record": "header", **device.to_json(), "timing": timing}


class Header(Fingerprint):
    """The device of a table, and how kernels were timed."""

    schema_number: Literal[6] = Field(alias="schema")
    record: Literal["header"]
    timing: Object | None = None

    @property
    def device(self) -> Fingerprint:
        """The device that the table belongs to."""
        return Fingerprint(**{name: getattr(self, name) for name in Fingerprint.model_fields})


HEADER_FORMAT = Format(
    Header,
    "the header of a latency table",
    TableError,
    remedy="If it is a latency table, restore it from a copy, or build it again in another file; "
    "otherwise name another file.",
)


def kept_samples(samples_us: Sequence[float]) -> tuple[float, ...]:
    """Return samples of a timing for a record, `MAX_SAMPLES` at most, with the same median.

    If there are more, those at evenly spaced ranks stay, in ascending order: as many below the
    median as above it, with the fastest and the slowest.
    """
    if len(samples_us) <= MAX_SAMPLES:
        return tuple(samples_us)
    ascending = sorted(samples_us)
    half, is_odd = divmod(len(ascending), 2)
    below = (MAX_SAMPLES - is_odd) // 2
    ranks = [step * (half - 1) // (below - 1) for step in range(below)]
    middle = ascending[half : half + is_odd]
    return (
        *(ascending[rank] for rank in ranks),
        *middle,
        *(ascending[-1 - rank] for rank in reversed(ranks)),
    )


class Record(Document):
    """A kernel or a dispatch cost of a latency table.

    Attributes:
        kind: what it is of; `record` in the file.
        name: text of the kernel, or the part of the dispatch costs, such as `launch`; `kernel` or
            `part` in the file.
        status: `ok`; `unstable` or `disturbed` (`nas.latency.rounds.Latency.status`), which
            predict, flagged; or `failed`, with an error and without a latency.
        latency_us: `nas.latency.rounds.Latency.fastest_us`; the median of `samples_us` if it was
            timed in one round. None if failed.
        samples_us: samples of the fastest timing, see `kept_samples`.
        rounds_us, readings_us, first_us: every timing of a kernel or a miss curve, in order, see
            `nas.latency.timing.Timing`; the last two are empty without readings.
        full_us: reading at full speed, as far as it was known when the record was written.
        complete: whether no further timing is needed.
        schedule: schedule from which the runtime can build the kernel again.
        basis: `measured`, or `estimated: <by what>`.
        error: why it failed.
        supersedes: line of the record that this one replaces.
        line: number of the line in its file, where the header is line 1; 0 before it is written.
    """

    kind: Literal["kernel", "dispatch"] = Field(validation_alias=AliasChoices("record", "kind"))
    name: str = Field(validation_alias=AliasChoices("kernel", "part", "name"))
    status: Literal["ok", "unstable", "disturbed", "failed"] = "ok"
    latency_us: Microseconds | None = None
    samples_us: Annotated[tuple[Microseconds, ...], Field(max_length=MAX_SAMPLES)] = ()
    rounds_us: Annotated[tuple[Microseconds, ...], Field(max_length=1000)] = ()
    readings_us: Annotated[tuple[Microseconds, ...], Field(max_length=1000)] = ()
    first_us: Annotated[tuple[Microseconds, ...], Field(max_length=1000)] = ()
    full_us: Microseconds | None = None
    complete: bool = True
    schedule: Object | None = None
    basis: Annotated[Text, Field(pattern=rf"^({MEASURED}|{ESTIMATED}.+)$")] = MEASURED
    error: Text | None = None
    supersedes: Annotated[int, Field(ge=2)] | None = None
    line: int = Field(default=0, exclude=True)

    _name_keys: ClassVar = {"kernel": "kernel", "dispatch": "part"}

    @model_validator(mode="after")
    def _fits_its_status(self) -> Self:
        if {len(self.readings_us), len(self.first_us)} - {0, len(self.rounds_us)}:
            raise ValueError("readings_us and first_us should be as long as rounds_us")
        if self.status == "failed":
            if self.latency_us is not None or not self.error:
                raise ValueError("a failed record has an error and no latency")
        elif self.latency_us is None or not self.samples_us:
            raise ValueError(f"it should have latency_us, and 1 to {MAX_SAMPLES} samples of it")
        elif round_to_four_digits(self.latency_us) != self.latency.fastest_us:
            raise ValueError(
                f"latency_us is {self.latency_us}, and its timings say {self.latency.fastest_us}"
            )
        return self

    @property
    def rounds(self) -> list[Timing]:
        """The timing in each round. The fastest has its samples; the others have their median."""
        fastest = Timing(self.samples_us)
        if not self.rounds_us:
            return [fastest]
        readings_us = self.readings_us or [None] * len(self.rounds_us)
        first_us = self.first_us or [None] * len(self.rounds_us)
        rounds = [
            Timing((us,), reading_us, first)
            for us, reading_us, first in zip(self.rounds_us, readings_us, first_us, strict=True)
        ]
        if fastest.latency_us in self.rounds_us:
            at = self.rounds_us.index(fastest.latency_us)
            rounds[at] = replace(rounds[at], samples_us=self.samples_us)
        return rounds

    @property
    def latency(self) -> Latency:
        """The latency, from all rounds."""
        return Latency(self.rounds, self.full_us)

    @classmethod
    def from_timings(
        cls,
        kind: Literal["kernel", "dispatch"],
        timings: Sequence[Timing],
        *,
        name: str,
        policy: Policy = ONCE,
        full_us: float | None = None,
        schedule: Any = None,
        basis: str = MEASURED,
    ) -> Record:
        """Return the record of a kernel or a dispatch cost.

        Args:
            kind, name: what it is of.
            timings: the timing in each round.
            policy: how often it should be timed.
            full_us: reading at full speed, as far as it is known now.
            schedule: schedule of a kernel.
            basis: basis of the runtime.
        """
        is_several = len(timings) > 1 or policy.fewest > 1
        has_readings = is_several and all(each.reading_us is not None for each in timings)
        latency = Latency(timings, full_us if has_readings else None)
        fastest = min(timings, key=lambda each: each.latency_us)
        return cls(
            kind=kind,
            name=name,
            status=latency.status(policy),
            latency_us=latency.fastest_us,
            samples_us=kept_samples(fastest.samples_us),
            rounds_us=tuple(each.latency_us for each in timings if is_several),
            readings_us=tuple(each.reading_us or 0.0 for each in timings if has_readings),
            first_us=tuple(each.typical_us for each in timings if has_readings),
            full_us=latency.full_us,
            complete=latency.is_complete(policy),
            schedule=None if schedule is None else dict(schedule),
            basis=basis,
        )

    def differs(self, before: Record | None) -> bool:
        """Return whether it has other timings than the one before, or judges them otherwise."""
        own, other = (
            (each.status, each.latency_us, each.rounds_us, each.complete)
            for each in (self, before or self)
        )
        return before is None or own != other

    @property
    def is_estimated(self) -> bool:
        """Whether the latency was not measured."""
        return self.latency_us is not None and self.basis != MEASURED

    @property
    def flags(self) -> tuple[str, ...]:
        """The reasons to trust the latency less: its status, and `estimated: <by what>`."""
        unsure = (self.status,) if self.status in UNCERTAIN else ()
        return (*unsure, self.basis) if self.is_estimated else unsure

    @property
    def key(self) -> str:
        """Kind and name. No two current records of a table have the same key."""
        return f"{self.kind} {self.name}"

    def to_json(self) -> dict[str, Any]:
        """Return the line to write, without the fields that do not apply."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"kind", "name"})
        always = {"status": self.status, "basis": self.basis}
        return {"record": self.kind, self._name_keys[self.kind]: self.name, **always, **fields}


def kernel_digest(text: str) -> str:
    """Return the digits by which a `BlockRecord` names a kernel."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class BlockRecord(Document):
    """What the runtime makes of a block in a place, see `nas.latency.fused_blocks`.

    Attributes:
        block: digest of the block.
        entry, exit, batch: the place, see `Place`.
        kernels: `kernel_digest` of the text of each kernel.
        is_preferred, wants_preferred: see `FusedBlock`.
        supersedes: line of the record that this one replaces.
        line: number of the line in its file; 0 before it is written.
    """

    block: Annotated[str, Field(max_length=64)]
    entry: Entry
    exit: Exit
    batch: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    kernels: Annotated[tuple[Annotated[str, Field(max_length=16)], ...], Field(max_length=1000)]
    is_preferred: bool
    wants_preferred: bool
    supersedes: Annotated[int, Field(ge=2)] | None = None
    line: int = Field(default=0, exclude=True)

    @classmethod
    def of(cls, place: Place, fused: FusedBlock) -> BlockRecord:
        """Return the record of an answer of the runtime."""
        return cls(
            block=place.digest,
            entry=place.entry,
            exit=place.exit,
            batch=place.batch,
            kernels=tuple(kernel_digest(kernel.text) for kernel in fused.kernels or ()),
            is_preferred=fused.is_preferred,
            wants_preferred=fused.wants_preferred,
        )

    @property
    def place(self) -> Place:
        """Where the block stands."""
        return Place(self.block, self.entry, self.exit, self.batch)

    @property
    def key(self) -> str:
        """No two current records of a table have the same key."""
        return " ".join(["block", *map(str, self.place)])

    def to_json(self) -> dict[str, Any]:
        """Return the line to write."""
        return {"record": "block", **self.model_dump(mode="json", exclude_defaults=True)}


class CorrectionNetwork(Document):
    """A network on which a correction was fitted, and its latencies at that time.

    Attributes:
        architecture: the architecture as `Architecture.to_json` writes it.
        uncorrected_us: latency that the table predicted.
        measured_us: latency that was measured.
    """

    architecture: dict[str, JsonValue]
    uncorrected_us: Microseconds
    measured_us: Microseconds


class Correction(Document):
    """A correction of predictions, and its errors as fractions; see `nas.latency.correction`.

    In files its `record` is `calibration`.

    Attributes:
        kernel_factor: factor of the kernels' latencies.
        dispatch_factor: factor of all that is beside them in an uncorrected latency.
        nets: number of networks on which it was fitted.
        mape_before: mean absolute error on these networks without it.
        mape_after: mean absolute error that is expected with it for other networks.
        spaces: digests of the spaces of these networks.
        networks: the networks. A check times them again, to tell how fast the device is then, and
            judges no correction by them.
        batch: number of images that run at once.
        supersedes: line of the correction that this one replaces.
        line: number of the line in its file; 0 before it is written.
    """

    kernel_factor: Annotated[float, Field(gt=0, le=1e6)]
    dispatch_factor: Annotated[float, Field(ge=0, le=1e6)]
    nets: Count
    mape_before: Annotated[float, Field(ge=0)]
    mape_after: Annotated[float, Field(ge=0)]
    spaces: tuple[str, ...] = ()
    networks: tuple[CorrectionNetwork, ...] = ()
    batch: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    supersedes: Annotated[int, Field(ge=2)] | None = None
    line: int = Field(default=0, exclude=True)

    @property
    def key(self) -> str:
        """No two current records of a table have the same key."""
        return f"calibration batch{self.batch}"

    def apply(self, uncorrected_us: float, kernels_us: float) -> float:
        """Return the corrected latency of a network in microseconds.

        Args:
            uncorrected_us: latency as it is composed of kernels and dispatch costs.
            kernels_us: sum of the kernels' latencies.
        """
        # In this order, a correction that changes nothing does not round either.
        surplus_us = (self.kernel_factor - self.dispatch_factor) * kernels_us
        return self.dispatch_factor * uncorrected_us + surplus_us

    def to_json(self) -> dict[str, Any]:
        """Return the line to write."""
        fields = self.model_dump(mode="json", exclude_none=True)
        return {"record": "calibration", "status": "ok", **fields}

    @property
    def text(self) -> str:
        """What the correction is, and by how much it lowers the error of predictions; a clause."""
        if self.kernel_factor == self.dispatch_factor == 1:
            return (
                f"predictions stay as they are: no correction predicts others of {self.nets} whole "
                f"networks better; their mean error was {self.mape_before:.2%}, and "
                f"{self.mape_after:.2%} is expected for others"
            )
        return (
            f"predictions are corrected: {self.kernel_factor:.4f} x kernels + "
            f"{self.dispatch_factor:.4f} x dispatch costs, fitted on {self.nets} whole networks, "
            f"whose mean error was {self.mape_before:.2%}; {self.mape_after:.2%} is expected for "
            "others"
        )


class _AnyLine(Document):
    """The field that tells the kinds of lines apart."""

    record: Literal["kernel", "dispatch", "block", "calibration"]


_ROW = "a row of a latency table"
_REMEDY = "The table was edited or damaged: restore it from a copy, or build it again."
_ANY_LINE = Format(_AnyLine, _ROW, TableError, _REMEDY)
_RECORD = Format(Record, _ROW, TableError, _REMEDY)
_FORMATS: dict[str, Format[Any]] = {
    "kernel": _RECORD,
    "dispatch": _RECORD,
    "block": Format(BlockRecord, _ROW, TableError, _REMEDY),
    "calibration": Format(Correction, _ROW, TableError, _REMEDY),
}

AnyRecord = Record | BlockRecord | Correction
"""What a line of a latency table after the header is."""


def parse_line(content: bytes, where: str, line: int) -> AnyRecord:
    """Return what a line after the header says.

    Args:
        content: the line.
        where: file and line number, for messages.
        line: number of the line.

    Raises:
        TableError: the line is no record of a table.
    """
    parsed: AnyRecord = _FORMATS[_ANY_LINE.parse(content, where).record].parse(content, where)
    return parsed.model_copy(update={"line": line})
