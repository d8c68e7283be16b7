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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nas import jsonl
from nas.arguments import checked
from nas.errors import RequestError, TableError
from nas.graph import Graph
from nas.latency.device import Fingerprint
from nas.latency.header import HEADER_FORMAT, Header, new_header
from nas.latency.prediction import Prediction, Predictor
from nas.latency.record import Record
from nas.latency.runtime import Runtime
from nas.latency.table_file import TableFile, can_begin, lock_of, locked, unwritable
from nas.latency.table_records import TableRecords

if TYPE_CHECKING:
    from nas.space import Architecture


class LatencyTable(TableRecords):
    """The kernels of one device, runtime, dtype and number of threads.

    Use `open`, `find` or `open_or_create` instead of the constructor.

    Attributes:
        path: file of the table.
        device: device whose latencies the table holds.
        timing: how the kernels were timed, from the header.
    """

    def __init__(self, file: TableFile, header: Header, *, is_writable: bool) -> None:
        super().__init__(file.path, header.device)
        self.timing = header.timing
        self._file = file
        self._is_writable = is_writable
        self._lock = lock_of(file.path)
        self._predictor = Predictor(self)

    @classmethod
    @checked
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
        path = Path(path)
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
                    table = cls(file, header, is_writable=runtime is not None)
                except RequestError as error:  # an unknown runtime or dtype
                    message = error.message.rstrip(".")
                    raise HEADER_FORMAT.failure(f"{where}: {message}") from None
            else:
                table.add(line, where, file.lines + 1)
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
    @checked
    def open_or_create(cls, path: Path | str, runtime: Runtime) -> LatencyTable:
        """Open this device's table for appending; create it and its folder if it is missing.

        Args:
            path: a `.jsonl` file, or a folder, in which the file is named after the device, and
                gets a number if another device or version has that name.
            runtime: an opened runtime.

        Raises:
            RequestError: no file can have this path, or the kernels do not predict networks, see
                `Runtime.check_predictions`.
            TableDeviceError: the table belongs to another device.
            TableError: the file is damaged, no table, or cannot be created.
        """
        runtime.check_predictions()
        path = _path_for(path, runtime)
        if can_begin(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unwritable(path, error.strerror) from None
            with locked(lock_of(path), path):
                if can_begin(path):  # unless another process has created it meanwhile
                    jsonl.repair(path)
                    jsonl.append(path, new_header(runtime.fingerprint, runtime.basis))
        return cls.open(path, runtime=runtime)

    def refresh(self) -> None:
        """Read the lines that another process has appended.

        Raises:
            TableError: a line is damaged.
        """
        for line, where in self._file.unread():
            self.add(line, where, self._file.lines + 1)
            self._predictor.forget()

    @checked(Architecture="nas.space")
    def predict(
        self,
        network: Graph | Architecture,
        batch: int = 1,
        *,
        dispatch_us: Mapping[str, float] | None = None,
    ) -> Prediction:
        """Return the predicted latency of a network.

        Args:
            network: the network. An architecture is corrected by the last calibration that was
                fitted on its space, a graph by the last of all.
            batch: number of images that run at once.
            dispatch_us: dispatch costs to use instead of the table's, such as those of another
                moment, when the machine is busier.

        Raises:
            MissingKernelError: a kernel of the network is not in the table.
            FailedKernelError: a kernel of the network could not be timed.
            TableError: the table lacks a dispatch cost.
        """
        if isinstance(network, Graph):
            return self._predictor.predict(network, batch, dispatch_us)
        space = network.space.digest
        return self._predictor.predict(network.graph, batch, dispatch_us, space)

    def launches_us(self, launches: int) -> float:
        """Return the latency of a small network whose kernels take no time, in microseconds.

        Args:
            launches: number of kernels.
        """
        return self._predictor.launches_us(launches)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers out, and allow `append`, while inside.

        Raises:
            TableError: another process writes the table, or it was opened without a runtime.
        """
        if not self._is_writable:
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

    def append(self, record: Record) -> Record:
        """Append a record, which supersedes the current one of its key.

        The record is on the disk when this method returns.

        Returns:
            The record as it was written.

        Raises:
            TableError: it is called outside `writing`, or the latency is not usable.
        """
        if not self._lock.is_locked:
            raise TableError("A latency table grows only inside `with table.writing():`.")
        before = self._current.get(record.key)
        line = self._file.lines + 1
        record = replace(record, supersedes=before.line if before else None, line=line)
        value = record.to_json()
        Record.parse(json.dumps(value).encode(), f"{self.path}, line {line}", line)
        jsonl.append(self.path, value)
        self.refresh()
        return record


def _path_for(path: Path | str, runtime: Runtime) -> Path:
    """Return the file of a table, given the file or the folder of tables.

    In a folder, the file is named after the device. If a file of that name holds the table of
    another device, or of another version of the runtime, a number follows: `NAME-2.jsonl`.
    """
    path = Path(path)
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
