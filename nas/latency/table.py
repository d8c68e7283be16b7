"""`LatencyTable`: the measured latencies of one device, and predictions from them.

A table is a JSON Lines file that only grows. Readers change nothing on the disk and may read while
another process builds; they skip a half-written last line. A writer holds a lock, and removes a
half-written line before it appends. A file that is no table is never changed.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from filelock import FileLock, Timeout

from nas import jsonl
from nas.documents import shortened
from nas.errors import (
    FailedKernelError,
    KernelError,
    MissingKernelError,
    RequestError,
    TableError,
)
from nas.graph import Graph
from nas.latency.cache_model import DispatchCosts
from nas.latency.kernel import Kernel
from nas.latency.prediction import Prediction, joined_basis
from nas.latency.record import HEADERS, Header, Record, header
from nas.latency.runtime import NetworkCost, Runtime, configured_runtime
from nas.latency.table_file import TableFile, can_begin, damaged

LOCK_SECONDS = 2.0
"""How long a writer waits for another one before it gives up."""

MOST_PIECES = 1 << 16
"""Blocks, or networks, whose kernels are remembered for one batch size."""

_FORMER_PART = re.compile(r"weights_\d+mib_paced\d+")
"""Dispatch costs that earlier versions measured: they stand in tables, and nothing uses them."""


class HasGraph(Protocol):
    """What has a graph, such as a `nas.space.Architecture`."""

    @property
    def graph(self) -> Graph:
        """The network's ops."""
        ...


class _Known(NamedTuple):
    """A network, or a piece of one.

    Args:
        kernels: in launch order.
        near_us: latency of each.
        farther_us: what they take more together when all of them are far.
        weight_bytes: of all of them.
        unstable: how many rest on a timing that would not settle.
        bases: what the latencies of the estimated ones are estimated by.
    """

    kernels: tuple[Kernel, ...]
    near_us: tuple[float, ...]
    farther_us: float
    weight_bytes: int
    unstable: int
    bases: tuple[str, ...]


class LatencyTable:
    """The kernels of one device, runtime, dtype and thread count. Open it, do not construct it.

    Attributes:
        path: the file.
        device: whose latencies these are.
        timing: how they were timed, as the header says.
    """

    def __init__(self, file: TableFile, first: Header, *, writable: bool) -> None:
        device = first.device
        self.path = file.path
        self.device = device
        self.timing = first.timing
        self._file = file
        self._writable = writable
        self._lock = _lock_of(file.path)
        self._runtime = configured_runtime(
            device.runtime,
            target=device.target,
            threads=device.threads,
            dtype=device.dtype,
            features=device.features,
        )
        self._current: dict[str, Record] = {}
        self._usable_us: dict[Kernel, float] = {}
        self._unstable: set[Kernel] = set()
        self._estimated: dict[Kernel, str] = {}
        self._dispatch_us: dict[str, float] = {}
        self._dispatch_bases: dict[str, str] = {}
        self._dispatch = DispatchCosts({})
        self._parts = frozenset(self._runtime.dispatch_parts)
        self._pieces: dict[int, dict[Graph, _Known]] = {}
        self._calibrations: dict[int, tuple[float, float]] = {}

    @classmethod
    def open(cls, path: Path | str, *, runtime: Runtime | None = None) -> LatencyTable:
        """Opens a table for reading.

        Args:
            path: the file.
            runtime: if given, the table must be of this runtime on this device. Without it, any
                device's table is read: predictions are then for that device.

        Raises TableError for a file that cannot be trusted, TableDeviceError for another device's.
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
                first = HEADERS.parse(line, where)
                if runtime is not None:
                    first.device.require(runtime.fingerprint, str(path))
                table = cls._with_header(file, first, where, writable=runtime is not None)
            else:
                table._admit(line, where)
        if table is None:
            raise TableError(f"{path} has no header.", remedy="Build the table again.")
        return table

    @classmethod
    def find(cls, path: Path | str, runtime: Runtime) -> LatencyTable | None:
        """Return this device's table, or None where `open_or_create` would make one.

        Nothing on the disk is made or changed, no lock either.

        Raises as `open_or_create` does.
        """
        path = _path_of(path, runtime)
        return None if can_begin(path) else cls.open(path, runtime=runtime)

    @classmethod
    def open_or_create(cls, path: Path | str, runtime: Runtime) -> LatencyTable:
        """Opens this device's table for appending; makes it, and its folder, where there is none.

        Args:
            path: a `.jsonl` file, or the folder in which the device's own file name is used.

        Raises RequestError for a path that no file can have, TableDeviceError for a table of
        another device, TableError for a file that is no table and as `open` does.
        """
        path = _path_of(path, runtime)
        if can_begin(path):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _unwritable(path, error.strerror) from None
            with _locked(_lock_of(path), path):
                if can_begin(path):  # unless another process has made it meanwhile
                    jsonl.repair(path)
                    jsonl.append(path, header(runtime.fingerprint))
        return cls.open(path, runtime=runtime)

    @classmethod
    def _with_header(
        cls, file: TableFile, first: Header, where: str, *, writable: bool
    ) -> LatencyTable:
        try:
            return cls(file, first, writable=writable)
        except RequestError as error:  # an unknown runtime or dtype
            raise HEADERS.failure(f"{where}: {error.message.rstrip('.')}") from None

    @property
    def runtime(self) -> Runtime:
        """The runtime that the table was timed with, not opened: it predicts, and times nothing."""
        return self._runtime

    def __len__(self) -> int:
        """How many kernels have a current record, failed ones included."""
        return sum(record.record == "kernel" for record in self._current.values())

    # Reading

    def refresh(self) -> None:
        """Reads what another process appended since. Raises TableError for a line to distrust."""
        for line, where in self._file.unread():
            self._admit(line, where)

    def _admit(self, line: bytes, where: str) -> None:
        record = Record.parse(line, where, self._file.lines + 1)
        before = self._current.get(record.key)
        if record.supersedes != (before.line if before else None):
            raise damaged(
                f"{where}: '{record.key.strip()}' has a record in line {before.line} already"
                if before
                else f"{where}: it supersedes line {record.supersedes}, which is no such record"
            )
        if record.record == "kernel":
            self._admit_kernel(record, where)
        elif record.record == "dispatch":
            self._admit_dispatch(record, where)
        elif record.calibration is not None:
            fitted = record.calibration
            self._calibrations[fitted.get("batch", 1)] = fitted["slope"], fitted["offset_us"]
        self._current[record.key] = record
        self._pieces.clear()

    def _admit_kernel(self, record: Record, where: str) -> None:
        try:
            kernel = Kernel.parse(record.name)
        except KernelError as error:
            raise damaged(f"{where}: {error.message.rstrip('.')}") from None
        self._usable_us.pop(kernel, None)
        self._unstable.discard(kernel)
        self._estimated.pop(kernel, None)
        if record.latency_us is not None:
            self._usable_us[kernel] = record.latency_us
        if record.is_estimated:
            self._estimated[kernel] = record.basis
        if record.status == "unstable":
            self._unstable.add(kernel)

    def _admit_dispatch(self, record: Record, where: str) -> None:
        if record.name not in self._parts and not _FORMER_PART.fullmatch(record.name):
            raise damaged(
                f"{where}: {shortened(record.name)} is no dispatch cost of runtime "
                f"'{self.device.runtime}'"
            )
        self._dispatch_us.pop(record.name, None)
        self._dispatch_bases.pop(record.name, None)
        if record.latency_us is not None:
            self._dispatch_us[record.name] = record.latency_us
        if record.is_estimated:
            self._dispatch_bases[record.name] = record.basis
        self._dispatch = DispatchCosts(dict(self._dispatch_us))

    def record(self, kernel: Kernel) -> Record | None:
        """The current record of a kernel, failed or not."""
        return self._current.get(f"kernel {kernel.text}")

    def records(self) -> list[Record]:
        """The current records in the order of the file."""
        return sorted(self._current.values(), key=lambda record: record.line)

    def lacks_dispatch(self) -> bool:
        """Whether a part of the runtime's dispatch cost was not measured yet."""
        return not self._dispatch_us.keys() >= self._parts

    @property
    def dispatch_us(self) -> dict[str, float]:
        """Microseconds by part of the runtime's dispatch cost; empty before it was measured."""
        return dict(self._dispatch_us)

    @property
    def unstable_dispatch(self) -> list[str]:
        """The parts of the dispatch cost that rest on a timing that would not settle."""
        parts = [self._current.get(f"dispatch {part}") for part in self._runtime.dispatch_parts]
        return [part.name for part in parts if part is not None and part.status == "unstable"]

    def missing(self, kernels: Iterable[Kernel], *, failed: bool = False) -> list[Kernel]:
        """Those without a record, or, with `failed`, with a failed one; in order, once each."""
        return [
            kernel
            for kernel in dict.fromkeys(kernels)
            if (found := self.record(kernel)) is None or (failed and found.status == "failed")
        ]

    def latency_us(self, kernel: Kernel) -> float:
        """Microseconds of one kernel.

        Raises MissingKernelError or FailedKernelError, naming the kernel.
        """
        if kernel in self._usable_us:
            return self._usable_us[kernel]
        found = self.record(kernel)
        if found is None:
            batch = f" --batch {kernel.batch}" if kernel.batch > 1 else ""
            raise MissingKernelError(
                f"{self.path.name} has no kernel '{kernel}'.",
                remedy=f"Add its space with `nas table build{batch} --space`.",
            )
        raise FailedKernelError(f"Kernel '{kernel}' could not be timed: {found.error}.")

    def farther_us(self, kernel: Kernel) -> float:
        """What a kernel takes more when its weights are far: 0 or more.

        From its own record, or for one that was not timed so, from what weights cost in general.
        See `nas.latency.cache_model`. 0 for one that the table lacks.
        """
        found = self.record(kernel)
        if found is None or found.latency_us is None:
            return 0.0
        if found.far_us is not None:
            return max(0.0, found.far_us - found.latency_us)
        return self._dispatch.cold_weights_us(kernel.weight_bytes)

    def schedules(self) -> dict[Kernel, dict[str, Any]]:
        """How the runtime builds each kernel that has a latency."""
        return {
            kernel: dict(found.schedule or {})
            for kernel in self._usable_us
            if (found := self.record(kernel)) is not None
        }

    def predict(
        self,
        network: Graph | HasGraph,
        batch: int = 1,
        *,
        dispatch_us: Mapping[str, float] | None = None,
    ) -> Prediction:
        """Return the predicted latency of a whole network, for a batch of images at once.

        Args:
            network: a graph, or an architecture, whose graph is predicted.
            batch: images at once.
            dispatch_us: what lies beside the kernels, if it is not what the table has: how busy the
                machine is at some other moment.

        Raises MissingKernelError or FailedKernelError, naming the kernel; TableError for a table
        without a dispatch cost.
        """
        graph = network if isinstance(network, Graph) else network.graph
        if self.lacks_dispatch():
            raise TableError(
                f"{self.path} does not say what a launch costs.",
                remedy="Continue it with `nas table build`.",
            )
        kernels, latencies, farther_us, weight_bytes, unstable, bases = self._split(graph, batch)
        cost = NetworkCost(
            latencies, farther_us, weight_bytes, self._runtime.activation_bytes(graph, batch)
        )
        dispatch = self._dispatch if dispatch_us is None else DispatchCosts(dispatch_us)
        total = self._runtime.network_us(cost, dispatch)
        calibration = self._calibrations.get(batch)
        return Prediction(
            total,
            kernels,
            latencies,
            total - sum(latencies),
            unstable,
            joined_basis((*bases, *self._dispatch_bases.values())),
            calibration[0] * total + calibration[1] if calibration else None,
            batch,
            len(bases),
        )

    def _split(self, graph: Graph, batch: int) -> _Known:
        """The kernels of a graph and the latency of each; remembered for every piece."""
        pieces = graph.pieces if self._runtime.has_local_kernels else (graph,)
        if len(pieces) == 1:
            return self._known(graph, batch)
        found = [self._known(piece, batch) for piece in pieces]
        return _Known(
            tuple([kernel for piece in found for kernel in piece.kernels]),
            tuple([latency for piece in found for latency in piece.near_us]),
            sum([piece.farther_us for piece in found]),
            sum([piece.weight_bytes for piece in found]),
            sum([piece.unstable for piece in found]),
            tuple([basis for piece in found for basis in piece.bases]) if self._estimated else (),
        )

    def _known(self, piece: Graph, batch: int) -> _Known:
        pieces = self._pieces.setdefault(batch, {})
        known = pieces.get(piece)
        if known is None:
            kernels = tuple(self._runtime.kernels(piece, batch))
            known = _Known(
                kernels,
                tuple([self.latency_us(kernel) for kernel in kernels]),
                sum([self.farther_us(kernel) for kernel in kernels]),
                sum([self._weight_bytes(kernel) for kernel in kernels]),
                sum([kernel in self._unstable for kernel in kernels]),
                tuple([self._estimated[k] for k in kernels if k in self._estimated]),
            )
            if len(pieces) >= MOST_PIECES:
                pieces.clear()
            pieces[piece] = known
        return known

    def _weight_bytes(self, kernel: Kernel) -> int:
        """Of a kernel's weights as the runtime keeps them."""
        found = self.record(kernel)
        try:
            return self._runtime.weight_bytes(kernel, (found and found.schedule) or {})
        except ValueError as error:
            line = found.line if found else 0
            raise damaged(f"{self.path}, line {line}: its schedule: {error}") from None

    # Writing

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Allows `append` while inside, and keeps other writers out.

        Raises TableError where another process writes, or the table was opened without a runtime.
        """
        if not self._writable:
            raise TableError(
                f"{self.path} was opened for reading only.",
                remedy="Open it with the runtime it belongs to.",
            )
        if not os.access(self.path, os.W_OK):
            raise _unwritable(self.path, os.strerror(errno.EACCES))
        with _locked(self._lock, self.path):
            self.refresh()  # before anything is changed: a damaged table stays as it is
            jsonl.repair(self.path, start=b"{")  # its header was read: it is a table
            self.refresh()
            yield

    def append(self, record: Record) -> Record:
        """Adds a record, on the disk when this returns, superseding the current one of its kind.

        Returns the record as it was written. Raises TableError outside `writing`, or for a record
        without a usable latency.
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


@contextmanager
def _locked(lock: FileLock, path: Path) -> Iterator[None]:
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise TableError(
            f"Another process is writing {path}.",
            remedy="Wait until it is done; what it adds is kept.",
        ) from error
    except OSError as error:
        raise _unwritable(path, error.strerror) from None
    try:
        yield
    finally:
        lock.release()


def _lock_of(path: Path) -> FileLock:
    """The lock of a table, the same one for all symbolic links to it."""
    return FileLock(f"{os.path.realpath(path)}.lock")


def _path_of(path: Path | str, runtime: Runtime) -> Path:
    """The file that is meant by a `.jsonl` file, or by a folder of tables."""
    path = Path(path)
    return path if path.suffix == ".jsonl" else path / runtime.fingerprint.slug


def _unwritable(path: Path, reason: str | None) -> TableError:
    return TableError(f"{path} cannot be written: {reason}.", remedy="Name another file or folder.")
