"""Raw timings of three latency tables and of whole networks, recorded once.

A recording has every sample of every round, so that rules which choose a latency among rounds can
be compared on it. The recordings were made on two idle vCPUs of an AMD EPYC (family 25, model 17)
with kernels of version 9, in ten rounds of each kernel. They also have the duration of a reference
workload beside each timing, samples of kernels with cold caches, and further dispatch costs.

A fourth table is one of ONNX Runtime on the same kind of processor. It has only the parts of
predictions, and the latencies of the whole networks: the twelve that were timed after the build
(`correction`), and the 64 of a later check (`check`), divided by what the check said of the device.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import nas
from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable
from nas.latency.check import CheckedNetwork, TableCheck
from nas.latency.record import Record
from nas.latency.rounds import ONCE, Latency, Policy
from nas.latency.runtime import Schedule
from nas.latency.timing import Timing
from nas.space import Architecture, SearchSpace
from tests.latency.fake_runtime import FakeRuntime
from tests.latency.small_table import checked

FOLDER = Path(__file__).parent / "latency"

NETWORKS = 20


class Parts(NamedTuple):
    """The parts of a network's uncorrected prediction, and its latency, in microseconds."""

    kernels_us: float
    launches_us: float
    misses_us: float
    measured_us: float

    @property
    def dispatch_us(self) -> float:
        """What the prediction has beside the kernels."""
        return self.launches_us + self.misses_us

    @property
    def uncorrected_us(self) -> float:
        """The prediction."""
        return self.kernels_us + self.dispatch_us

    @classmethod
    def of_onnxruntime(cls, networks: str) -> list[Parts]:
        """Return the recorded parts of ONNX Runtime's networks, `correction` or `check`."""
        with (FOLDER / "efficientnet_lite-96-onnxruntime.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.pop("networks") == networks]
        return [cls(**{name: float(us) for name, us in row.items()}) for row in rows]


def check_of(networks: Iterable[Parts]) -> TableCheck:
    """Return networks of which the parts are known only."""
    return TableCheck(
        tuple(
            checked(each.uncorrected_us, each.measured_us, dispatch_us=each.dispatch_us)
            for each in networks
        )
    )


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
            for part in table.runtime.capabilities.dispatch_parts:
                table.append(self._record("dispatch", part, self.dispatch[part], None))
            for kernel, rounds in self.kernels.items():
                schedule = self.schedules[kernel]
                table.append(self._record("kernel", kernel.text, rounds, schedule))
        return table

    @staticmethod
    def _record(kind: Any, name: str, rounds: list[Timing], schedule: Any) -> Record:
        policy = Policy(len(rounds)) if len(rounds) > 1 else ONCE
        return Record.from_timings(kind, rounds, name=name, policy=policy, schedule=schedule)

    def parts(self, table: LatencyTable) -> list[Parts]:
        """Return the parts of the recorded networks by a table, in order of latency."""
        result = []
        for each in self.check(table).networks:
            prediction, graph = each.prediction, each.architecture.graph
            weight_bytes = sum(map(table.weight_bytes, prediction.kernels))
            touched_bytes = weight_bytes + table.runtime.activation_bytes(graph)
            misses_us = table.dispatch.waiting_us(weight_bytes, touched_bytes)
            launches_us = prediction.dispatch_us - misses_us
            kernels_us = sum(prediction.kernels_us)
            result.append(Parts(kernels_us, launches_us, misses_us, each.measured_us))
        return result

    def check(self, table: LatencyTable) -> TableCheck:
        """Return the recorded networks beside the predictions of a table, in order of latency."""
        networks = [
            CheckedNetwork(architecture, table.predict(architecture), Latency(own))
            for architecture, own in self.networks
        ]
        networks.sort(key=lambda each: each.prediction.uncorrected_us)
        return TableCheck(tuple(networks))
