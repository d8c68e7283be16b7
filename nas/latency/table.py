"""`LatencyTable`: the measured latencies of one device, in a file, and predictions from them.

A table is a JSON Lines file to which lines are only appended. Readers change nothing on the disk
and may read while another process builds the table; they skip an incomplete last line. A writer
holds a lock, and removes an incomplete last line before it appends. A file that is no table is
never changed.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nas.errors import (
    FailedKernelError,
    KernelError,
    MissingKernelError,
    RequestError,
    TableError,
)
from nas.files import jsonl
from nas.files.documents import shortened
from nas.files.paths import expanded
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.cache_model import BETWEEN_PARTS, DispatchCosts
from nas.latency.composition import NetworkCost
from nas.latency.device import Fingerprint
from nas.latency.fused_blocks import FusedBlock, Place
from nas.latency.installed_runtimes import configured_runtime
from nas.latency.prediction import BlockCosts, Prediction, joined_basis
from nas.latency.record import (
    HEADER_FORMAT,
    UNCERTAIN,
    AnyRecord,
    BlockRecord,
    Correction,
    Header,
    Record,
    kernel_digest,
    new_header,
    parse_line,
)
from nas.latency.rounds import full_speed_us
from nas.latency.runtime import Runtime
from nas.latency.table_file import TableFile, can_begin, damaged, lock_of, locked, unwritable

if TYPE_CHECKING:
    from nas.space import Architecture


L = TypeVar("L", Record, BlockRecord, Correction)


class LatencyTable:
    """The kernels of one device, runtime, dtype and number of threads.

    Use `open`, `find` or `open_or_create` instead of the constructor.

    Attributes:
        device: device whose latencies the table holds.
        timing: how the kernels were timed, from the header.
        runtime: the runtime that the table was timed with. It is not opened: it lists kernels and
            predicts, and times nothing.
        dispatch: the dispatch costs that are measured.
        dispatch_bases: basis of the dispatch costs that are estimated.

    Raises:
        RequestError: the runtime is not installed, or does not have the dtype.
    """

    def __init__(self, file: TableFile, header: Header, *, writer: Runtime | None) -> None:
        self.device, self.timing = header.device, header.timing
        self.runtime: Runtime = configured_runtime(
            header.runtime,
            target=header.target,
            threads=header.threads,
            dtype=header.dtype,
            features=header.features,
        )
        self._file, self._writer = file, writer
        self._lock = lock_of(file.path)
        self._current: dict[str, AnyRecord] = {}
        self._kernels: dict[Kernel, Record] = {}
        self._kernels_by_digest: dict[str, Kernel] = {}
        self._blocks: dict[Place, BlockRecord] = {}
        if fused := self.runtime.fused_blocks:
            fused.recall, fused.permit = self._recall, self._permit_asking
        # The last one for each batch size and digest of a space, and for None the last of all.
        self._corrections: dict[tuple[int, str | None], Correction] = {}
        self._chosen_corrections: dict[int, Correction | None] = {}
        self._dispatch: dict[str, Record] = {}
        self.dispatch = DispatchCosts({})
        self.dispatch_bases: list[str] = []
        self._costs = BlockCosts(self.runtime, self.timed_record, self.weight_bytes)

    @property
    def path(self) -> Path:
        """The file of the table, also after the working folder has changed.

        A table that is pickled is opened again from it.
        """
        return self._file.path

    @classmethod
    def open(cls, path: Path | str, *, runtime: Runtime | None = None) -> LatencyTable:
        """Open a table for reading; with a runtime, also for appending.

        Args:
            path: file of the table.
            runtime: an opened runtime; the table must belong to it and to this device. None means
                that the table may be of any device, and that predictions are for that device.

        Raises:
            TableError: the file is missing, damaged or no table.
            TableDeviceError: the table belongs to another device.
        """
        path = Path(expanded(path))
        if not os.path.lexists(path):
            raise TableError(
                f"There is no latency table {path}.", remedy="Make one with `nas table build`."
            )
        file = TableFile(path)
        table = None
        for line, where in file.unread():
            if table is None:
                header = HEADER_FORMAT.parse(line, where)
                if runtime is not None:
                    header.device.require_match(runtime.fingerprint, str(path))
                try:
                    table = cls(file, header, writer=runtime)
                except RequestError as error:  # an unknown runtime or dtype
                    message = error.message.rstrip(".")
                    raise HEADER_FORMAT.failure(f"{where}: {message}") from None
            else:
                table._add(line, where, file.lines + 1)
        if table is None:
            raise TableError(f"{path} has no header.", remedy="Build the table again.")
        return table

    @classmethod
    def find(cls, path: Path | str, runtime: Runtime) -> LatencyTable | None:
        """Return this device's table, or None if `open_or_create` would create one.

        Nothing on the disk is created or changed, not even a lock.

        Raises:
            RequestError, TableDeviceError, TableError: see `open_or_create`.
        """
        path = _path_for(path, runtime)
        return None if can_begin(path) else cls.open(path, runtime=runtime)

    @classmethod
    def open_or_create(cls, path: Path | str, runtime: Runtime) -> LatencyTable:
        """Open this device's table for appending; create it and its folder if it is missing.

        Args:
            path: a `.jsonl` file, or a folder, in which the file is named after the device, and
                gets a number if another device or version has that name.
            runtime: an opened runtime.

        Raises:
            RequestError: no file can have this path.
            TableDeviceError: the table belongs to another device.
            TableError: the file is damaged, no table, or cannot be created.
        """
        path = _path_for(path, runtime)
        if can_begin(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(path, error.strerror) from None
            with locked(lock_of(path), path):
                if can_begin(path):  # unless another process has created it meanwhile
                    jsonl.repair(path)
                    header = new_header(runtime.fingerprint, runtime.basis, runtime.reading)
                    jsonl.append(path, header)
        return cls.open(path, runtime=runtime)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process reads the file by itself, and locks it for itself.
        return _reopen, (self.path.absolute(), self._writer)

    def refresh(self) -> None:
        """Read the lines that another process has appended.

        Raises:
            TableError: a line is damaged.
        """
        for line, where in self._file.unread():
            self._add(line, where, self._file.lines + 1)

    def _add(self, line: bytes, where: str, number: int) -> None:
        """Add the record in a line, which may supersede a current one.

        Raises:
            TableError: the line is no record, supersedes the wrong record, or belongs to another
                runtime.
        """
        record = parse_line(line, where, number)
        before = self._current.get(record.key)
        if before is not None and before.line == number:
            return  # Reading it was interrupted.
        if record.supersedes != (before.line if before else None):
            raise damaged(
                f"{where}: '{record.key}' has a record in line {before.line} already"
                if before
                else f"{where}: it supersedes line {record.supersedes}, which is no such record"
            )
        if isinstance(record, BlockRecord):
            self._blocks[record.place] = record
        elif isinstance(record, Correction):
            for space in (None, *record.spaces):
                self._corrections[record.batch, space] = record
        elif record.kind == "kernel":
            try:
                kernel = Kernel.parse(record.name)
            except KernelError as error:
                raise damaged(f"{where}: {error.message.rstrip('.')}") from None
            self._kernels[kernel] = record
            self._kernels_by_digest[kernel_digest(record.name)] = kernel
        else:
            self._add_dispatch(record, where)
        self._current[record.key] = record
        self._costs.forget()

    def _add_dispatch(self, record: Record, where: str) -> None:
        if record.name not in self.runtime.capabilities.dispatch_parts:
            raise damaged(
                f"{where}: {shortened(record.name)} is no dispatch cost of runtime "
                f"'{self.device.runtime}'"
            )
        if not record.name.startswith("weights_"):
            # Corrections were fitted with other costs of launching kernels.
            self._corrections.clear()
        self._dispatch[record.name] = record
        costs = {part: each.latency_us for part, each in self._dispatch.items()}
        self.dispatch = DispatchCosts({part: us for part, us in costs.items() if us is not None})
        self.dispatch_bases = [each.basis for each in self._dispatch.values() if each.is_estimated]

    def _recall(self, place: Place) -> FusedBlock | None:
        """Return what the table knows of a block in a place; None if it does not know it."""
        record = self._blocks.get(place)
        if record is None:
            return None
        kernels = [self._kernels_by_digest.get(each) for each in record.kernels]
        known = tuple(kernel for kernel in kernels if kernel)
        complete = known if len(known) == len(kernels) else None
        return FusedBlock(complete, record.is_preferred, record.wants_preferred)

    def _permit_asking(self) -> None:
        """Raise MissingKernelError unless this machine's runtime makes what the device's makes."""
        if self._writer is None and (
            differences := self.device.differences(self.runtime.fingerprint)
        ):
            raise MissingKernelError(
                f"{self.path.name} does not know all kernels that {self.device.runtime} makes of "
                f"the network, and here {differences[0]}.",
                remedy=f"Add its space with `{self.runtime.build_command} --space` on the device.",
            )

    @property
    def blocks(self) -> list[BlockRecord]:
        """What the runtime makes of blocks, as far as the table knows."""
        return list(self._blocks.values())

    def record_blocks(self) -> None:
        """Append what the runtime has made of blocks and the table does not know yet.

        Raises TableError outside `writing`.
        """
        for runtime in (self._writer, self.runtime):
            fused = runtime.fused_blocks if runtime else None
            for place, block in (fused.asked if fused else {}).items():
                if place not in self._blocks:
                    self.append(BlockRecord.of(place, block))

    def __len__(self) -> int:
        """Return the number of kernels with a record, including failed ones."""
        return len(self._kernels)

    def record(self, kernel: Kernel) -> Record | None:
        """Return the current record of a kernel, failed or not; None if there is none."""
        return self._kernels.get(kernel)

    def records(self, kind: str) -> list[Record]:
        """Return the current records of one kind, in the order of the file."""
        timed = (each for each in self._current.values() if isinstance(each, Record))
        return sorted((each for each in timed if each.kind == kind), key=lambda each: each.line)

    def use_correction(self, correction: Correction | None, batch: int = 1) -> None:
        """Predict with a former correction of the table, whatever others are recorded later.

        Args:
            correction: what `correction` returned; None for no correction.
            batch: number of images that run at once.
        """
        self._chosen_corrections[batch] = correction

    def correction(self, batch: int = 1, space: str | None = None) -> Correction | None:
        """Return the correction for a batch size; None if there is none.

        Args:
            batch: number of images that run at once.
            space: digest of the space of the networks to predict. The last correction that was
                fitted on networks of this space counts; without one, the last of all.
        """
        if batch in self._chosen_corrections:
            return self._chosen_corrections[batch]
        return self._corrections.get((batch, space)) or self._corrections.get((batch, None))

    def corrections(self) -> list[Correction]:
        """Return the corrections that correct predictions of some space, in file order."""
        by_line = {each.line: each for each in self._corrections.values()}
        return [by_line[line] for line in sorted(by_line)]

    def lacks_dispatch(self) -> bool:
        """Return whether a dispatch cost of the runtime is not measured yet."""
        return not self.dispatch.parts_us.keys() >= set(self.runtime.capabilities.dispatch_parts)

    @property
    def uncertain_dispatch(self) -> list[str]:
        """The dispatch costs whose timing is unstable or disturbed."""
        return [part for part, each in self._dispatch.items() if each.status in UNCERTAIN]

    @property
    def full_us(self) -> float | None:
        """Duration of a reading at full speed in all kernels' timings.

        None without readings, or if a reading is another one now.
        """
        if (self.timing or {}).get("reading") != self.runtime.reading:
            return None
        return full_speed_us(
            each for record in self._kernels.values() for each in record.readings_us
        )

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

    def timed_record(self, kernel: Kernel) -> Record:
        """Return the current record of a kernel, which has a latency.

        Raises:
            MissingKernelError: the kernel has no record.
            FailedKernelError: the kernel could not be timed.
        """
        record = self.record(kernel)
        if record is None:
            batch = f" --batch {kernel.batch}" if kernel.batch > 1 else ""
            raise MissingKernelError(
                f"{self.path.name} has no kernel '{kernel}'.",
                remedy=f"Add its space with `{self.runtime.build_command}{batch} --space`.",
            )
        if record.latency_us is None:
            error = (record.error or "no reason is known").rstrip(".")
            raise FailedKernelError(f"Kernel '{kernel}' could not be timed: {error}.")
        return record

    def latency_us(self, kernel: Kernel) -> float:
        """Return the latency of one kernel with warm caches in microseconds.

        Raises:
            MissingKernelError, FailedKernelError: see `timed_record`.
        """
        return self.timed_record(kernel).latency_us or 0.0

    def figures(self, graph: Graph, batch: int = 1) -> dict[str, float]:
        """Return the costs of a network beside its latency, by the names in `Runtime.figures`.

        Args:
            graph: the network.
            batch: number of images at once, whose kernels are added up.

        Raises:
            MissingKernelError: a kernel of the network is not in the table, or has no value of a
                figure.
            FailedKernelError: a kernel of the network could not be timed.
            MeasurementError: the device cannot run the network.
        """
        return {**self.runtime.network_figures(graph), **self.kernel_figures(graph, batch)}

    def kernel_figures(self, graph: Graph, batch: int = 1) -> dict[str, float]:
        """Return the sums of `Capabilities.kernel_figures` over the kernels of a network, by name.

        Raises:
            MissingKernelError, FailedKernelError: see `figures`.
        """
        kernels = (
            self.runtime.kernels(graph, batch) if self.runtime.capabilities.kernel_figures else []
        )
        return {
            figure.name: sum(self._kernel_figure(kernel, figure.name) for kernel in kernels)
            for figure in self.runtime.capabilities.kernel_figures
        }

    def _kernel_figure(self, kernel: Kernel, name: str) -> float:
        value = (self.timed_record(kernel).schedule or {}).get(name)
        if not isinstance(value, int | float):
            raise MissingKernelError(
                f"{self.path.name} has no {name} of kernel '{kernel}'.",
                remedy=f"Runtime '{self.runtime.name}' should return it with the schedule.",
            )
        return float(value)

    def schedules(self) -> dict[Kernel, dict[str, Any]]:
        """Return the schedule of each kernel that has a latency."""
        return {
            kernel: dict(record.schedule or {})
            for kernel, record in self._kernels.items()
            if record.latency_us is not None
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

    def predict(self, network: Graph | Architecture, batch: int = 1) -> Prediction:
        """Return the predicted latency of a network.

        Args:
            network: the network. An architecture is corrected by the last correction that was
                fitted on its space, a graph by the last of all.
            batch: number of images that run at once.

        Raises:
            MissingKernelError: a kernel of the network is not in the table.
            FailedKernelError: a kernel of the network could not be timed.
            TableError: the table lacks a dispatch cost.
        """
        required = set(self.runtime.capabilities.dispatch_parts) - set(BETWEEN_PARTS)
        if not self.dispatch.parts_us.keys() >= required:
            raise TableError(
                f"{self.path} has no dispatch overhead.",
                remedy=f"Continue it with `{self.runtime.build_command}`.",
            )
        if isinstance(network, Graph):
            graph, space = network, None
        else:
            graph, space = network.graph, network.space.digest
        costs = self._costs.of(graph, batch)
        activation_bytes = self.runtime.activation_bytes(graph, batch)
        cost = NetworkCost(costs.warm_us, costs.weight_bytes, activation_bytes)
        uncorrected_us = self.runtime.network_us(cost, self.dispatch)
        kernels_us = sum(costs.warm_us)
        correction = self.correction(batch, space)
        return Prediction(
            correction.apply(uncorrected_us, kernels_us) if correction else uncorrected_us,
            costs.kernels,
            costs.warm_us,
            uncorrected_us - kernels_us,
            costs.uncertain,
            joined_basis((*costs.bases, *self.dispatch_bases)),
            uncorrected_us,
            batch,
            len(costs.bases),
        )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers out, and allow `append`, while inside.

        Raises:
            TableError: another process writes the table, or it was opened without a runtime.
        """
        if self._writer is None:
            raise TableError(
                f"{self.path} was opened for reading only.",
                remedy="Open it with the runtime it belongs to.",
            )
        if not os.access(self.path, os.W_OK):
            raise unwritable(self.path, os.strerror(errno.EACCES))
        with locked(self._lock, self.path):
            self.refresh()  # before anything is changed: a damaged table stays as it is
            jsonl.repair(self.path, start=b"{")  # its header was read: it is a table
            self.refresh()
            yield

    def append(self, record: L) -> L:
        """Append a record, which supersedes the current one of its key.

        The record is on the disk when this method returns.

        Returns:
            The record as it was written.

        Raises:
            TableError: it is called outside `writing`, or the latency is not usable.
        """
        if not self._lock.is_held:
            raise TableError("A latency table grows only inside `with table.writing():`.")
        before = self._current.get(record.key)
        line = self._file.lines + 1
        record = record.model_copy(
            update={"supersedes": before.line if before else None, "line": line}
        )
        value = record.to_json()
        parse_line(json.dumps(value).encode(), f"{self.path}, line {line}", line)
        try:
            jsonl.append(self.path, value)
        finally:
            # Ctrl-C or an error may come while the line that is written goes to the disk.
            self.refresh()
        return record


def _path_for(path: Path | str, runtime: Runtime) -> Path:
    """Return the file of a table, given the file or the folder of tables.

    In a folder, the file is named after the device. If a file of that name holds the table of
    another device, or of another version of the runtime, a number follows: `NAME-2.jsonl`.
    """
    path = Path(expanded(path))
    if path.suffix == ".jsonl":
        return path
    first = candidate = path / runtime.fingerprint.slug
    number = 2
    while not can_begin(candidate) and _read_device(candidate).differences(runtime.fingerprint):
        candidate = first.with_stem(f"{first.stem}-{number}")
        number += 1
    return candidate


def _read_device(path: Path) -> Fingerprint:
    """Return the device in the header of a table. Raises TableError if it cannot be read."""
    line, where = next(TableFile(path).unread())
    return HEADER_FORMAT.parse(line, where).device


def _reopen(path: Path, writer: Runtime | None) -> LatencyTable:
    """Return a table that was pickled, opened again.

    It is no class method, because cloudpickle takes none that is decorated.
    """
    return LatencyTable.open(path, runtime=writer)
