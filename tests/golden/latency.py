"""Raw timings of a latency table and of whole networks, and the command that records them:

    python -m tests.golden.latency mobilenet_32 --image-size 32

A recording has every sample of every round, so that rules which choose a latency among rounds can
be compared on it. The three recordings beside this file were made on two idle vCPUs of an AMD EPYC
(family 25, model 17) with kernels of version 9; they also have the duration of a reference workload
beside each timing, ten rounds of each kernel, samples of kernels with cold caches, and further
dispatch costs.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import nas
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table, open_runtime, space_kernels
from nas.latency.check import CheckedNetwork, TableCheck
from nas.latency.correction import spread_networks
from nas.latency.networks import NetworkTimings, measure_networks
from nas.latency.record import Record
from nas.latency.runtime import KernelTimer, Schedule
from nas.latency.timing import Timing
from nas.latency.worker_process import timers_for
from nas.space import Architecture, SearchSpace
from tests.latency.fake_runtime import FakeRuntime

FOLDER = Path(__file__).parent / "latency"

NETWORKS = 20


@dataclass(frozen=True)
class Recording:
    """Timings at every round, by kernel, by dispatch cost and by network."""

    space: SearchSpace
    schedules: Mapping[Kernel, Schedule]
    kernels: Mapping[Kernel, list[Timing]]
    dispatch: Mapping[str, list[Timing]]
    networks: list[tuple[Architecture, list[Timing]]]

    @classmethod
    def load(cls, path: Path) -> Recording:
        content = json.loads(gzip.decompress(path.read_bytes()))
        space = nas.load_space(content["space"], image_size=content["image_size"])

        def timings(rounds: list[dict[str, Any]]) -> list[Timing]:
            return [Timing(tuple(each["samples_us"])) for each in rounds]

        kernels = {Kernel.parse(text): each for text, each in content["kernels"].items()}
        return cls(
            space,
            {kernel: each["schedule"] for kernel, each in kernels.items()},
            {kernel: timings(each["rounds"]) for kernel, each in kernels.items()},
            {part: timings(rounds) for part, rounds in content["dispatch"].items()},
            [
                (space.from_json(each["architecture"]), timings(each["rounds"]))
                for each in content["networks"]
            ],
        )

    def table(self, path: Path) -> LatencyTable:
        """Write the table that a build with these timings makes."""
        table = LatencyTable.open_or_create(path, FakeRuntime())
        with table.writing():
            for part in table.runtime.dispatch_parts:
                table.append(self._record("dispatch", part, self.dispatch[part], None))
            for kernel, rounds in self.kernels.items():
                schedule = self.schedules[kernel]
                table.append(self._record("kernel", kernel.text, rounds, schedule))
        return table

    @staticmethod
    def _record(kind: Any, name: str, rounds: list[Timing], schedule: Any) -> Record:
        first, *others = rounds
        record = Record.from_timing(kind, first, name=name, schedule=schedule)
        for index, each in enumerate(others):
            record = record.as_first_of_several(first, None) if index == 0 else record
            record = record.with_timing(each, fewest=len(rounds))
        return record

    def check(self, table: LatencyTable) -> TableCheck:
        """Return the recorded networks beside the predictions of a table, in order of latency."""
        networks = [
            CheckedNetwork(architecture, table.predict(architecture), NetworkTimings(tuple(own)))
            for architecture, own in self.networks
        ]
        networks.sort(key=lambda each: each.prediction.uncorrected_us)
        return TableCheck(tuple(networks))


class _RecordingTimer(KernelTimer):
    """Passes everything on to a timer, and keeps what it returns."""

    def __init__(self, timer: KernelTimer, kept: dict[str, Any]) -> None:
        self._timer, self._kept = timer, kept

    def time_kernel(self, kernel: Kernel) -> tuple[Schedule, Timing]:
        schedule, timing = self._timer.time_kernel(kernel)
        own = {"schedule": dict(schedule), "rounds": [_to_json(timing)]}
        self._kept["kernels"][kernel.text] = own
        return schedule, timing

    def retime_kernel(self, kernel: Kernel, schedule: Schedule) -> Timing:
        timing = self._timer.retime_kernel(kernel, schedule)
        self._kept["kernels"][kernel.text]["rounds"].append(_to_json(timing))
        return timing

    def time_dispatch(self) -> Mapping[str, Timing]:
        return dict(self._keep_dispatch(self._timer.time_dispatch()))

    def time_miss_curve(self) -> Mapping[str, Timing]:
        return dict(self._keep_dispatch(self._timer.time_miss_curve()))

    def _keep_dispatch(self, timings: Mapping[str, Timing]) -> Iterator[tuple[str, Timing]]:
        for part, timing in timings.items():
            self._kept["dispatch"].setdefault(part, []).append(_to_json(timing))
            yield part, timing


def _to_json(timing: Timing) -> dict[str, Any]:
    return {"samples_us": list(timing.samples_us)}


def record(space: SearchSpace, folder: Path) -> Path:
    """Build a new table of a space, time networks, and write all timings."""
    runtime = open_runtime("tvm")
    kept: dict[str, Any] = {
        "space": space.name,
        "image_size": space.image_size,
        "device": runtime.fingerprint.to_json(),
        "kernels": {},
        "dispatch": {},
    }
    stem = f"{space.name}-{space.image_size}"
    table = LatencyTable.open_or_create(folder / f"{stem}.jsonl", runtime)
    with timers_for(runtime) as timers:
        recording = [_RecordingTimer(each, kept) for each in timers]
        build_table(table, space_kernels(space, runtime), recording)
    networks = [a for _, a in spread_networks(table, [space], NETWORKS, np.random.default_rng(0))]
    timed = measure_networks([each.graph for each in networks], runtime, table.schedules())
    kept["networks"] = [
        {"architecture": each.to_json(), "rounds": [_to_json(one) for one in result.timings]}
        for each, result in zip(networks, timed, strict=True)
    ]
    path = folder / f"{stem}.json.gz"
    path.write_bytes(gzip.compress(json.dumps(kept).encode(), mtime=0))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("space")
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--out", type=Path, default=Path())
    arguments = parser.parse_args()
    space = nas.load_space(arguments.space, image_size=arguments.image_size)
    print(record(space, arguments.out))


if __name__ == "__main__":
    main()
