"""A device that is timed by kits whose program is a function, and takes computed latencies."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable, build_table
from nas.latency.kit import RESULTS, KitDevice
from nas.latency.rounds import Latency
from nas.latency.timing import Timing
from nas.runtimes.tvm.kit.runtime import KitRuntime
from tests.latency.fake_runtime import FakeRuntime, latency_us

TARGET = "kit:phone?triple=aarch64-linux-gnu&cpu=cortex-a76"
MANIFEST = "kit.json"


def run_kit(folder: Path, *, share: float = 1.0) -> None:
    """Do what the program of a kit does on the device: time a share of what it holds."""
    names = list(json.loads((folder / MANIFEST).read_text())["latencies"].items())
    timed = dict(names[: round(share * len(names))])
    (folder / RESULTS).write_text(json.dumps(timed))


class FakeKitDevice(KitRuntime, KitDevice):
    """The device of `TARGET`. A network takes 1.2 times as long as its kernels.

    Attributes:
        written: the folders of the kits that were written, by all devices.
    """

    written: ClassVar[list[Path]] = []

    @classmethod
    def use(cls, patch: pytest.MonkeyPatch) -> None:
        """Let `TARGET` mean this device."""
        patch.setattr(cls, "written", [])
        patch.setattr("nas.runtimes.tvm.kit.runtime.KitRuntime", cls)

    def open(self) -> None:
        """Do nothing: there is no compiler."""

    def kit_contents(self, folder: Path) -> Collection[str]:
        path = folder / MANIFEST
        manifest = json.loads(path.read_text()) if path.exists() else {"target": None}
        return manifest["latencies"] if manifest["target"] == self.target else ()

    def write_kernels_kit(
        self, kernels: Sequence[Kernel], spaces: Sequence[str], folder: Path, progress: Any = None
    ) -> None:
        assert all(each.endswith(" 8px") for each in spaces)
        self._write(folder, {each.text: latency_us(each) for each in kernels})

    def import_kernels(
        self, folder: Path, tables: Path | str, progress: Any = None
    ) -> Sequence[str]:
        timed = self._read(folder)
        device = FakeRuntime(self.fingerprint.model_copy(update={"recorded": {"system": "toy"}}))
        build_table(LatencyTable.open_or_create(tables, device), map(Kernel.parse, timed), device)
        return [f"{len(timed)} kernels were timed"]

    def write_networks_kit(
        self, networks: Mapping[str, Any], schedules: Any, folder: Path, progress: Any = None
    ) -> None:
        latencies = {
            digest: 1.2 * sum(map(latency_us, self.kernels(graph)))
            for digest, graph in networks.items()
        }
        assert {kernel for graph in networks.values() for kernel in self.kernels(graph)} <= {
            *schedules
        }
        self._write(folder, latencies)

    def network_latencies(self, folder: Path, recorded: Any) -> Mapping[str, Latency]:
        return {
            digest: Latency([Timing.from_seconds([us / 1e6] * 3)] * 4)
            for digest, us in self._read(folder).items()
        }

    def _write(self, folder: Path, latencies: Mapping[str, float]) -> None:
        self.written.append(folder)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {"target": self.target, "latencies": latencies}
        (folder / MANIFEST).write_text(json.dumps(manifest))

    def _read(self, folder: Path) -> dict[str, float]:
        timed: dict[str, float] = json.loads((folder / RESULTS).read_text())
        return timed
