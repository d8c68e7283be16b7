"""`LatencyTable`: the measured latencies of one device, and predictions from them.

A table is a JSON Lines file that only grows. Readers never change it and may read while another
process builds; a half-written last line is not theirs to judge. A writer holds a lock, and cuts a
half-written line off before it appends.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from nas import jsonl
from nas.errors import FailedKernelError, MissingKernelError, TableError
from nas.graph import Graph
from nas.latency import footprint, runtimes
from nas.latency.device import Fingerprint
from nas.latency.kernel import Kernel
from nas.latency.record import Record, header, read_header
from nas.latency.runtimes import Runtime

LOCK_SECONDS = 2.0
"""How long a writer waits for another one before it gives up."""

MOST_PIECES = 1 << 16
"""Blocks, or networks, whose kernels are remembered for one batch size."""


class _Known(NamedTuple):
    """A network, or a piece of one.

    Args:
        kernels: in launch order.
        near_us: latency of each.
        farther_us: what they take more together when all of them are far.
        weight_bytes: of all of them.
        unstable: how many rest on a timing that would not settle.
    """

    kernels: tuple[Kernel, ...]
    near_us: tuple[float, ...]
    farther_us: float
    weight_bytes: int
    unstable: int


@dataclass(frozen=True)
class Prediction:
    """Predicted latency of one network.

    Args:
        latency_us: of the whole network.
        kernels: what it launches, in order.
        kernels_us: latency of each.
        dispatch_us: everything but the kernels: launching them, and starting the network.
        unstable: how many launches rest on a timing that would not settle.
        basis: `measured`, or what the first estimated latency in it is estimated by.
        calibrated_us: with the table's whole-network correction for this batch size; None without
            one.
        batch: images that run at once; all latencies are those of the whole batch.
    """

    latency_us: float
    kernels: tuple[Kernel, ...]
    kernels_us: tuple[float, ...]
    dispatch_us: float
    unstable: int
    basis: str = "measured"
    calibrated_us: float | None = None
    batch: int = 1

    @property
    def launches(self) -> int:
        """How many kernels run."""
        return len(self.kernels)

    def by_kernel(self) -> list[tuple[Kernel, int, float]]:
        """Every kernel, how often it runs, and its share in microseconds; the dearest first."""
        latency = dict(zip(self.kernels, self.kernels_us, strict=True))
        rows = [(k, n, n * latency[k]) for k, n in Counter(self.kernels).items()]
        return sorted(rows, key=lambda row: -row[2])


class LatencyTable:
    """The kernels of one device, runtime, dtype and thread count. Open it, do not construct it."""

    def __init__(self, path: Path, device: Fingerprint, *, writable: bool) -> None:
        self.path = path
        self.device = device
        self._writable = writable
        self._lock = FileLock(f"{path}.lock")
        self._fusion = runtimes.fusion(device.runtime, device.features, device.dtype)
        self._offset = 0
        self._lines = 0
        self._current: dict[str, Record] = {}
        self._usable_us: dict[Kernel, float] = {}
        self._unstable: set[Kernel] = set()
        self._estimated: dict[Kernel, str] = {}
        self._dispatch_us: dict[str, float] = {}
        self._curves: footprint.Curves = ()
        self._parts = frozenset(self._fusion.DISPATCH_PARTS)
        # Graphs count four bytes a number.
        self._activation_scale = 0.25 if device.dtype == "int8" else 1
        self._by_piece = getattr(self._fusion, "BY_PIECE", False)
        self._packed_bytes = getattr(self._fusion, "packed_bytes", None)
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
        if not path.is_file():
            raise TableError(
                f"There is no latency table {path}.", remedy="Make one with `nas table build`."
            )
        with path.open("rb") as file:
            first = file.readline()
        if not first.endswith(b"\n"):
            raise TableError(f"{path} has no header.", remedy="Build the table again.")
        device = read_header(_parse(first, f"{path}, line 1"), str(path))
        if runtime is not None:
            device.require(runtime.fingerprint, str(path))
        table = cls(path, device, writable=runtime is not None)
        table.refresh()
        return table

    @classmethod
    def open_or_create(cls, path: Path | str, runtime: Runtime) -> LatencyTable:
        """Opens this device's table for appending; makes it where there is none.

        Args:
            path: a `.jsonl` file, or the folder in which the device's own file name is used.

        Raises TableDeviceError for a table of another device, TableError as `open` does.
        """
        path = Path(path)
        if path.suffix != ".jsonl":
            path = path / runtime.fingerprint.slug
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(FileLock(f"{path}.lock"), path):
            jsonl.repair(path)
            if not path.exists() or path.stat().st_size == 0:
                jsonl.append(path, header(runtime.fingerprint))
        return cls.open(path, runtime=runtime)

    def __len__(self) -> int:
        """How many kernels have a current record, failed ones included."""
        return sum(record.record == "kernel" for record in self._current.values())

    # Reading

    def refresh(self) -> None:
        """Reads what another process appended since. Raises TableError for a line to distrust."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._lines += 1
            if self._lines > 1:
                where = f"{self.path}, line {self._lines}"
                self._admit(Record.from_json(_parse(line, where), where, self._lines), where)
        self._offset += len(whole)

    def _admit(self, record: Record, where: str) -> None:
        before = self._current.get(record.key)
        if record.supersedes != (before.line if before else None):
            raise TableError(
                f"{where}: '{record.key.strip()}' has a record in line {before.line} already."
                if before
                else f"{where}: it supersedes line {record.supersedes}, which is no such record.",
                remedy="The table was edited or damaged; build it again.",
            )
        self._current[record.key] = record
        if record.calibration is not None:
            found = record.calibration
            self._calibrations[found.get("batch", 1)] = found["slope"], found["offset_us"]
        if record.record == "dispatch" and record.latency_us is not None:
            self._dispatch_us[record.name] = record.latency_us
            self._pieces.clear()
            if not self.lacks_dispatch():
                self._curves = footprint.curves(self._dispatch_us)
        if record.record == "kernel":
            self._pieces.clear()
            kernel = Kernel.parse(record.name)
            self._usable_us.pop(kernel, None)
            self._unstable.discard(kernel)
            self._estimated.pop(kernel, None)
            if record.latency_us is not None:
                self._usable_us[kernel] = record.latency_us
                if record.basis != "measured":
                    self._estimated[kernel] = record.basis
            if record.status == "unstable":
                self._unstable.add(kernel)

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
        See `nas.latency.footprint`. 0 for one that the table lacks.
        """
        found = self.record(kernel)
        if found is None or found.latency_us is None:
            return 0.0
        if found.far_us is not None:
            return max(0.0, found.far_us - found.latency_us)
        return footprint.far_weights_us(kernel.weight_bytes, self._dispatch_us)

    def schedules(self) -> dict[Kernel, dict[str, Any]]:
        """How the runtime builds each kernel that has a latency."""
        return {
            kernel: dict(found.schedule or {})
            for kernel in self._usable_us
            if (found := self.record(kernel)) is not None
        }

    def predict(
        self, graph: Graph, batch: int = 1, *, dispatch_us: Mapping[str, float] | None = None
    ) -> Prediction:
        """Latency of a whole network, for a batch of images at once.

        Args:
            graph: the network.
            batch: images at once.
            dispatch_us: what lies beside the kernels, if it is not what the table has: how busy the
                machine is at some other moment.

        Raises MissingKernelError or FailedKernelError, naming the kernel; TableError for a table
        without a dispatch cost.
        """
        kernels, latencies, farther_us, weight_bytes, unstable = self._split(graph, batch)
        if self.lacks_dispatch():
            raise TableError(
                f"{self.path} does not say what a launch costs.",
                remedy="Continue it with `nas table build`.",
            )
        activation_bytes = batch * graph.peak_memory_bytes * self._activation_scale
        touched_bytes = weight_bytes + activation_bytes
        costs, curves = self._dispatch_us, self._curves
        if dispatch_us is not None:
            costs, curves = dict(dispatch_us), footprint.curves(dispatch_us)
        launch_us = footprint.launch_us(touched_bytes, costs)
        near_us = self._fusion.predicted_us(latencies, {**costs, "launch": launch_us})
        share = footprint.far_share(touched_bytes, near_us, curves)
        total = near_us + share * farther_us
        estimated = self._estimated
        calibration = self._calibrations.get(batch)
        return Prediction(
            total,
            kernels,
            latencies,
            total - sum(latencies),
            unstable,
            next((estimated[k] for k in kernels if k in estimated), "measured")
            if estimated
            else "measured",
            calibration[0] * total + calibration[1] if calibration else None,
            batch,
        )

    def _split(self, graph: Graph, batch: int) -> _Known:
        """The kernels of a graph and the latency of each; remembered for every piece."""
        pieces = graph.pieces if self._by_piece else (graph,)
        if len(pieces) == 1:
            return self._known(graph, batch)
        found = [self._known(piece, batch) for piece in pieces]
        return _Known(
            tuple([kernel for piece in found for kernel in piece.kernels]),
            tuple([latency for piece in found for latency in piece.near_us]),
            sum([piece.farther_us for piece in found]),
            sum([piece.weight_bytes for piece in found]),
            sum([piece.unstable for piece in found]),
        )

    def _known(self, piece: Graph, batch: int) -> _Known:
        pieces = self._pieces.setdefault(batch, {})
        known = pieces.get(piece)
        if known is None:
            kernels = tuple(self._fusion.kernels(piece, batch))
            known = _Known(
                kernels,
                tuple([self.latency_us(kernel) for kernel in kernels]),
                sum([self.farther_us(kernel) for kernel in kernels]),
                sum([self._weight_bytes(kernel) for kernel in kernels]),
                sum([kernel in self._unstable for kernel in kernels]),
            )
            if len(pieces) >= MOST_PIECES:
                pieces.clear()
            pieces[piece] = known
        return known

    def _weight_bytes(self, kernel: Kernel) -> int:
        """Of a kernel's weights as the runtime keeps them."""
        found = self.record(kernel)
        if self._packed_bytes is None or found is None:
            return kernel.weight_bytes
        packed: int = self._packed_bytes(kernel, found.schedule or {})
        return packed

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
        with _locked(self._lock, self.path):
            jsonl.repair(self.path)
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
        line = self._lines + 1
        record = replace(record, supersedes=before.line if before else None, line=line)
        value = record.to_json()
        Record.from_json(value, f"{self.path}, line {line}", line)
        jsonl.append(self.path, value)
        self.refresh()
        return record


@contextmanager
def _locked(lock: FileLock, path: Path) -> Iterator[None]:
    try:
        with lock.acquire(timeout=LOCK_SECONDS):
            yield
    except Timeout as error:
        raise TableError(
            f"Another process is writing {path}.",
            remedy="Wait until it is done; what it adds is kept.",
        ) from error


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise TableError(
            f"{where} is not JSON: {line[:60]!r}.", remedy="Build the table again."
        ) from error
    if not isinstance(value, dict):
        raise TableError(f"{where} is no JSON object.", remedy="Build the table again.")
    return value
