"""`TableRecords`: the current records of a latency table in memory, and lookups in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nas.documents import shortened
from nas.errors import FailedKernelError, KernelError, MissingKernelError
from nas.latency.cache_model import DispatchCosts
from nas.latency.correction import Correction
from nas.latency.device import Fingerprint
from nas.latency.installed_runtimes import configured_runtime
from nas.latency.kernel import Kernel
from nas.latency.processor_speed import is_one_speed, quiet_speed_us
from nas.latency.record import UNSTABLE, Record
from nas.latency.runtime import Runtime
from nas.latency.table_file import damaged


class TableRecords:
    """The current records of a latency table.

    Args:
        path: file of the table, for messages.
        device: device whose latencies the table holds.

    Attributes:
        runtime: the runtime that the table was timed with. It is not opened: it lists kernels and
            predicts, and times nothing.
        unstable: kernels whose timing is unstable.
        estimated: basis of the kernels whose latency is estimated.
        dispatch: the dispatch costs.
        dispatch_bases: basis of the dispatch costs that are estimated, by part.

    Raises:
        RequestError: the runtime is not installed, or does not have the dtype.
    """

    def __init__(self, path: Path, device: Fingerprint) -> None:
        self.path = path
        self.device = device
        self.runtime: Runtime = configured_runtime(
            device.runtime,
            target=device.target,
            threads=device.threads,
            dtype=device.dtype,
            features=device.features,
        )
        self.unstable: set[Kernel] = set()
        self.estimated: dict[Kernel, str] = {}
        self.dispatch = DispatchCosts({})
        self.dispatch_bases: dict[str, str] = {}
        self._quiet_us: float | None = None
        # The last one for each batch size and digest of a space, and for None the last of all.
        self._calibrations: dict[tuple[int, str | None], Record] = {}
        self._chosen_calibrations: dict[int, Record] = {}
        self._current: dict[str, Record] = {}
        self._latencies_us: dict[Kernel, float] = {}
        self._parts = frozenset(self.runtime.dispatch_parts)

    @property
    def quiet_us(self) -> float:
        """Duration of the reference workload at the quiet speed; infinity without any timing of it.

        The latencies of the table are those at this speed. It is
        `nas.latency.processor_speed.quiet_speed_us` when the first build ends, and remains so until
        more than the clock differs from it.
        """
        if self._quiet_us is None:
            records = [each for each in self._current.values() if each.kind == "kernel"]
            beside_us = (each.references_us for each in records)
            measured_us = quiet_speed_us([us for each in beside_us for us in each])
            settled = (each.quiet_us for each in records if each.settled)
            known_us = next((us for us in settled if us is not None), measured_us)
            self._quiet_us = known_us if is_one_speed(known_us, measured_us) else measured_us
        return self._quiet_us

    def __len__(self) -> int:
        """Return the number of kernels with a record, including failed ones."""
        return sum(record.kind == "kernel" for record in self._current.values())

    def add(self, line: bytes, where: str, number: int) -> None:
        """Add the record in a line, which may supersede a current one.

        Args:
            line: the line.
            where: file and line number, for messages.
            number: number of the line.

        Raises:
            TableError: the line is no record, supersedes the wrong record, or belongs to another
                runtime.
        """
        record = Record.parse(line, where, number)
        before = self._current.get(record.key)
        if record.supersedes != (before.line if before else None):
            raise damaged(
                f"{where}: '{record.key}' has a record in line {before.line} already"
                if before
                else f"{where}: it supersedes line {record.supersedes}, which is no such record"
            )
        if record.kind == "kernel":
            self._add_kernel(record, where)
        elif record.kind == "dispatch":
            self._add_dispatch(record, where)
        elif record.calibration is not None:
            batch = record.calibration["batch"]
            for space in (None, *record.calibration["spaces"]):
                self._calibrations[batch, space] = record
        self._current[record.key] = record

    def _add_kernel(self, record: Record, where: str) -> None:
        try:
            kernel = Kernel.parse(record.name)
        except KernelError as error:
            raise damaged(f"{where}: {error.message.rstrip('.')}") from None
        self._latencies_us.pop(kernel, None)
        self.unstable.discard(kernel)
        self.estimated.pop(kernel, None)
        self._quiet_us = None
        if record.latency_us is not None:
            self._latencies_us[kernel] = record.latency_us
        if record.is_estimated:
            self.estimated[kernel] = record.basis
        if record.status == UNSTABLE:
            self.unstable.add(kernel)

    def _add_dispatch(self, record: Record, where: str) -> None:
        if record.name not in self._parts:
            raise damaged(
                f"{where}: {shortened(record.name)} is no dispatch cost of runtime "
                f"'{self.device.runtime}'"
            )
        if not record.name.startswith("weights_"):
            # Corrections were fitted with other costs of launching kernels.
            self._calibrations.clear()
        parts = dict(self.dispatch.parts_us)
        parts.pop(record.name, None)
        self.dispatch_bases.pop(record.name, None)
        if record.latency_us is not None:
            parts[record.name] = record.latency_us
        if record.is_estimated:
            self.dispatch_bases[record.name] = record.basis
        self.dispatch = DispatchCosts(parts)

    def record(self, kernel: Kernel) -> Record | None:
        """Return the current record of a kernel, failed or not; None if there is none."""
        return self._current.get(f"kernel {kernel.text}")

    def records(self, kind: str | None = None) -> list[Record]:
        """Return the current records, or those of one kind, in the order of the file."""
        records = sorted(self._current.values(), key=lambda record: record.line)
        return [record for record in records if kind in (None, record.kind)]

    def use_calibration(self, fields: Mapping[str, Any], batch: int = 1) -> None:
        """Predict with a former calibration of the table, whatever others are recorded later.

        Args:
            fields: what `calibration` returned; empty for no correction.
            batch: number of images that run at once.
        """
        self._chosen_calibrations[batch] = Record.from_calibration(fields, batch)

    def calibration(self, batch: int = 1, space: str | None = None) -> Mapping[str, Any]:
        """Return the fields of the calibration for a batch size; empty if there is none.

        Args:
            batch: number of images that run at once.
            space: digest of the space of the networks to predict. The last calibration that was
                fitted on networks of this space counts; without one, the last of all.
        """
        record = self._calibration_record(batch, space)
        return (record and record.calibration) or {}

    def calibrations(self) -> list[Record]:
        """Return the calibrations that correct predictions of some space, in file order."""
        by_line = {record.line: record for record in self._calibrations.values()}
        return [by_line[line] for line in sorted(by_line)]

    def correction(self, batch: int = 1, space: str | None = None) -> Correction | None:
        """Return what corrects predictions, see `calibration`; None if nothing does."""
        record = self._calibration_record(batch, space)
        return None if record is None else record.correction

    def _calibration_record(self, batch: int, space: str | None) -> Record | None:
        if batch in self._chosen_calibrations:
            return self._chosen_calibrations[batch]
        return self._calibrations.get((batch, space)) or self._calibrations.get((batch, None))

    def lacks_dispatch(self) -> bool:
        """Return whether a dispatch cost of the runtime is not measured yet."""
        return not self.dispatch.parts_us.keys() >= self._parts

    @property
    def dispatch_us(self) -> dict[str, float]:
        """Microseconds of each dispatch cost that is measured."""
        return dict(self.dispatch.parts_us)

    @property
    def unstable_dispatch(self) -> list[str]:
        """The dispatch costs whose timing is unstable."""
        records = [self._current.get(f"dispatch {part}") for part in self.runtime.dispatch_parts]
        return [each.name for each in records if each is not None and each.status == UNSTABLE]

    def missing(self, kernels: Iterable[Kernel], *, include_failed: bool = False) -> list[Kernel]:
        """Return the kernels without a record, in order and once each.

        Args:
            kernels: kernels to look up.
            include_failed: whether kernels with a failed record are returned too.
        """
        return [
            kernel
            for kernel in dict.fromkeys(kernels)
            if (record := self.record(kernel)) is None
            or (include_failed and record.status == "failed")
        ]

    def latency_us(self, kernel: Kernel) -> float:
        """Return the latency of one kernel with warm caches in microseconds.

        Raises:
            MissingKernelError: the kernel has no record.
            FailedKernelError: the kernel could not be timed.
        """
        if kernel in self._latencies_us:
            return self._latencies_us[kernel]
        record = self.record(kernel)
        if record is None:
            batch = f" --batch {kernel.batch}" if kernel.batch > 1 else ""
            raise MissingKernelError(
                f"{self.path.name} has no kernel '{kernel}'.",
                remedy=f"Add its space with `nas table build{batch} --space`.",
            )
        error = (record.error or "no reason is known").rstrip(".")
        raise FailedKernelError(f"Kernel '{kernel}' could not be timed: {error}.")

    def cold_penalty_us(self, kernel: Kernel) -> float:
        """Return the additional time of a kernel with cold caches; at least 0.

        It comes from the kernel's own record, or, if the kernel was not timed with cold caches,
        from the cost of its weights in general (`nas.latency.cache_model`). It is 0 for a kernel
        without a latency.
        """
        record = self.record(kernel)
        if record is None or record.latency_us is None:
            return 0.0
        if record.cold_us is not None:
            return max(0.0, record.cold_us - record.fastest_us)
        return self.runtime.cold_weights_us(kernel, self.weight_bytes(kernel), self.dispatch)

    def schedules(self) -> dict[Kernel, dict[str, Any]]:
        """Return the schedule of each kernel that has a latency."""
        return {
            kernel: dict(record.schedule or {})
            for kernel in self._latencies_us
            if (record := self.record(kernel)) is not None
        }

    def weight_bytes(self, kernel: Kernel) -> int:
        """Return the size of a kernel's weights as the runtime stores them.

        Raises:
            TableError: the kernel's schedule is none of the runtime's.
        """
        record = self.record(kernel)
        try:
            return self.runtime.weight_bytes(kernel, (record and record.schedule) or {})
        except ValueError as error:
            line = record.line if record else 0
            raise damaged(f"{self.path}, line {line}: its schedule: {error}") from None
