"""The objectives of a job's search: latencies from tables, counts and the validation error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nas.errors import KernelError, TableError
from nas.job.context import JobContext
from nas.latency import LatencyTable, space_kernels
from nas.search import Infeasible, Objective
from nas.search.objectives import Score
from nas.space import Architecture
from nas.supernet import Supernet, evaluate

LATENCY = "predicted_us"
"""Name of the objective that is the latency on the job's own device."""


class JobObjectives:
    """The objectives of a job's search.

    Args:
        job: the job with its spaces, latency table and settings.
        supernets: the trained supernets by space; without them only the cheap objectives work.

    Raises:
        TableError: the table of another device lacks kernels of the spaces.
    """

    def __init__(self, job: JobContext, supernets: Mapping[str, Supernet]) -> None:
        self._job, self._supernets = job, supernets
        self._others = {
            Path(device.table).stem: LatencyTable.open(device.table)
            for device in job.settings.search.device
        }
        for table in self._others.values():
            require_complete(job, table)

    def all(self) -> list[Objective]:
        """Return the latency on every device, the counts with a limit, and the validation error."""
        chosen = self._job.settings.search
        objectives = [self._latency(LATENCY, self._job.table, chosen.max_latency_ms)]
        for device in chosen.device:
            name = Path(device.table).stem
            table = self._others[name]
            objectives.append(self._latency(f"predicted_us {name}", table, device.max_latency_ms))
        limits = {
            "macs": chosen.max_macs,
            "params": chosen.max_params,
            "peak_memory_bytes": chosen.max_peak_memory_bytes,
        }
        for count, limit in limits.items():
            if count in chosen.also_minimize or limit is not None:
                objectives.append(self._count(count, limit, only=count not in chosen.also_minimize))
        return [*objectives, Objective("validation_error", self._errors)]

    def fronts(self) -> dict[str, list[Objective]]:
        """Return the objectives of each further device's own front: its latency and the error."""
        return {
            name: [o for o in self.all() if o.name in (f"predicted_us {name}", "validation_error")]
            for name in self._others
        }

    def fixed_settings(self) -> dict[str, str]:
        """Return what may not change while a search is continued: its devices and batch size."""
        tables = {"device": self._job.table}
        tables |= {f"device of {name}": table for name, table in self._others.items()}
        facts = {name: _device_digest(table) for name, table in tables.items()}
        # Searches of single images were recorded without it before batches could be searched.
        return facts if self._job.batch == 1 else {**facts, "batch": str(self._job.batch)}

    def _latency(self, name: str, table: LatencyTable, limit_ms: float | None) -> Objective:
        def score(batch: Sequence[Architecture]) -> list[Score]:
            return [self._predicted(table, each) for each in batch]

        limit = None if limit_ms is None else 1000 * limit_ms
        return Objective(name, score, cheap=True, limit=limit)

    def _predicted(self, table: LatencyTable, architecture: Architecture) -> Score:
        graph = architecture.graph
        try:
            return table.predict(graph, self._job.batch).latency_us
        except KernelError as error:
            return Infeasible(error.message)

    def _count(self, name: str, limit: int | None, *, only: bool) -> Objective:
        def score(batch: Sequence[Architecture]) -> list[Score]:
            graphs = [each.graph for each in batch]
            return [float(getattr(graph, name)) for graph in graphs]

        most = None if limit is None else float(limit)
        return Objective(name, score, cheap=True, limit=most, limit_only=only)

    def _errors(self, batch: Sequence[Architecture]) -> list[Score]:
        data = self._job.data
        return [1 - evaluate(self._supernets[a.space.name], [a], data, "search")[0] for a in batch]


def require_complete(job: JobContext, table: LatencyTable) -> None:
    """Raise TableError for a table that cannot predict all architectures of the spaces."""
    needed = {
        kernel: None
        for space in job.spaces.values()
        for kernel in space_kernels(space, table.runtime, job.batch)
    }
    missing = table.missing(needed)
    remedy = "Run `nas table build` for these spaces and sizes on that device."
    if missing:
        raise TableError(
            f"{table.path} lacks {len(missing)} of {len(needed)} kernels of "
            f"{', '.join(job.spaces)}, the first: {missing[0]}.",
            remedy=remedy,
        )
    if table.lacks_dispatch():
        raise TableError(f"{table.path} does not say what a launch costs.", remedy=remedy)


def _device_digest(table: LatencyTable) -> str:
    """Return a digest of the part of a fingerprint that decides latencies."""
    device = table.device.to_json()
    del device["recorded"]
    text = json.dumps(device, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
