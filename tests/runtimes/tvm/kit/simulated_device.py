"""A device on which every function takes a known time, and the results that a kit writes there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from nas.files.documents import to_json
from nas.kernels.kernel import Kernel
from nas.latency.cache_model import WEIGHT_PARTS, WEIGHTS_MIB
from nas.latency.core_speed import FULL_SPEED_TOLERANCE
from nas.latency.kit import MANIFEST, RESULTS
from nas.runtimes.tvm.dispatch_benchmarks import launch_networks
from nas.runtimes.tvm.kernel_timer import tvm_kernels
from nas.runtimes.tvm.kit.manifest import Item, Manifest
from nas.runtimes.tvm.runtime import kernel_versions
from tests.latency.two_speeds import COMPUTE, MEMORY, TwoSpeedCore

TARGET = "kit:bench?triple=x86_64-linux-gnu&cpu=haswell"
PHONE = {
    "machine": "aarch64",
    "kernel": "Linux 5.10",
    "cpuinfo": "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd03\n",
    "model": "Test Phone",
    "present": "0-7",
}
"""What the device says of itself."""
LAUNCH_US, INVOCATION_US = 0.3, 1.5
MIB_US = dict(zip(WEIGHT_PARTS, (20.0, 22.0, 24.0, 28.0, 30.0, 50.0), strict=True))
SLOWER = 1.5
"""How many times as long as the fastest candidate of a kernel any other one takes."""


@cache
def kernel_us(name: str) -> float:
    """Return what the fastest candidate of a kernel takes."""
    return 1 + Kernel.parse(name).macs / 1000


@cache
def _launch_networks_us() -> dict[str, float]:
    """Return what each network of the launch benchmark takes."""
    return {
        name: INVOCATION_US + sum(kernel_us(each.text) + LAUNCH_US for each in tvm_kernels(graph))
        for name, graph in launch_networks().items()
    }


def kernels_manifest(
    kernels: Sequence[Kernel], schedules: Sequence[Mapping[str, Any]] = ({"tile": 1}, {"tile": 2})
) -> Manifest:
    """Return the manifest of a kit that times kernels with some schedules."""
    networks = launch_networks()
    launched = dict.fromkeys(
        each.text for graph in networks.values() for each in tvm_kernels(graph)
    )
    named: list[dict[str, Any]] = [
        {"part": "dispatch", "name": name} for name in (*networks, *WEIGHT_PARTS)
    ]
    named += [{"part": "dispatch", "name": name, "schedule": {"tile": 1}} for name in launched]
    named += [
        {"part": "kernel", "name": kernel.text, "schedule": dict(schedule)}
        for kernel in kernels
        for schedule in schedules
    ]
    return manifest_of("kernels", named)


def manifest_of(content: Any, items: Sequence[Mapping[str, Any]], **changes: Any) -> Manifest:
    """Return the manifest with these items."""
    numbered = [Item(id=at, **each) for at, each in enumerate(items)]
    settings = {"target": TARGET, "versions": kernel_versions(), **changes}
    return Manifest.of(content, settings.pop("target"), settings.pop("versions"), numbered)


@dataclass
class SimulatedDevice:
    """Runs the program of a kit.

    Args:
        folder: folder of the kit, which is made.
        manifest: what the kit times.
        core: the core on which the program runs.
        true_us: what items take that differ from the model of this module, by their number.
        says: what the device says of itself.
    """

    folder: Path
    manifest: Manifest
    core: TwoSpeedCore = field(default_factory=lambda: TwoSpeedCore(0, full_share=1.0))
    true_us: Mapping[int, float] = field(default_factory=dict)
    says: Mapping[str, Any] = field(default_factory=lambda: PHONE)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MANIFEST).write_text(to_json(self.manifest))
        self.rounds = dict.fromkeys(range(len(self.manifest.items)), 0)

    @property
    def path(self) -> Path:
        return self.folder / RESULTS

    def items(self, part: str, *names: str) -> list[Item]:
        """Return the items of a part, or those with some names."""
        return [
            each
            for each in self.manifest.items
            if each.part == part and (not names or each.name in names)
        ]

    def latency_us(self, item: Item) -> float:
        """Return what an item takes at full speed."""
        if item.id in self.true_us:
            return self.true_us[item.id]
        if item.name in WEIGHT_PARTS:
            return MIB_US[item.name] * WEIGHTS_MIB[WEIGHT_PARTS.index(item.name)]
        if item.name in _launch_networks_us():
            return _launch_networks_us()[item.name]
        is_first = item == self.items(item.part, item.name)[0]
        return kernel_us(item.name) * (1 if is_first else SLOWER)

    def append(self, **line: Any) -> None:
        """Append a line to the results."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def start(self, **changes: Any) -> None:
        """Start the program."""
        self.append(**{
            "line": "start", "schema": 2, "kit": self.manifest.kit, "core": 7,
            "device": dict(self.says), **changes,
        })  # fmt: skip

    def end(self, reason: str = "done") -> None:
        """End the program."""
        self.append(line="end", reason=reason)

    def time(self, item: Item, rounds: int = 1) -> None:
        """Time an item in some rounds."""
        samples = 5 if item.part == "dispatch" and item.name not in WEIGHT_PARTS else 3
        factor = MEMORY if item.name in WEIGHT_PARTS else COMPUTE
        limit_us = (1 + FULL_SPEED_TOLERANCE) * self.core.full_us
        for _ in range(rounds):
            self.core.sleep(0.5)
            attempts: list[list[float]] = []
            undisturbed = 0
            before = 1e6 * self.core.reading_s()
            while undisturbed < samples and len(attempts) < 10 * samples:
                if len(attempts) == 5 * samples:
                    if undisturbed:
                        break
                    before = self._wait_for_speed(limit_us)
                us = 1e6 * self.core.work(1e-6 * self.latency_us(item), factor)
                after = 1e6 * self.core.reading_s()
                attempts.append([us, before, after, 0])
                undisturbed += max(before, after) <= limit_us
                before = after
            self.append(
                line="timing", item=item.id, round=self.rounds[item.id], calls=1,
                full_us=self.core.full_us, attempts=attempts,
            )  # fmt: skip
            self.rounds[item.id] += 1

    def _wait_for_speed(self, limit_us: float) -> float:
        """Wait for ten seconds at most, and return the last reading of the speed."""
        end_s = self.core.now_s + 10
        while (reading_us := 1e6 * self.core.reading_s()) > limit_us and self.core.now_s < end_s:
            self.core.sleep(0.01)
        return reading_us

    def time_dispatch(self, rounds: int = 18, curve_rounds: int = 12) -> None:
        """Time what networks cost beside their kernels."""
        curve = self.items("dispatch", *WEIGHT_PARTS)
        others = [each for each in self.items("dispatch") if each not in curve]
        for items, count in ((others, rounds), (curve, curve_rounds)):
            for _ in range(count):
                for item in items:
                    self.time(item)

    def time_kernels(self, rounds: int = 4, kernels: Sequence[Kernel] | None = None) -> None:
        """Time the fastest candidate of each kernel, and the others quickly."""
        names = None if kernels is None else {each.text for each in kernels}
        for own in self._candidates():
            if names is not None and own[0].name not in names:
                continue
            for item in own:
                self.append(line="quick", item=item.id, us=self.latency_us(item))
            self.time(min(own, key=self.latency_us), rounds)

    def run(self) -> None:
        """Run the program to its end; it takes more rounds than are needed."""
        self.start()
        self.time_dispatch(24, 24)
        self.time_kernels(12)
        self.end()

    def _candidates(self) -> Iterator[list[Item]]:
        for name in dict.fromkeys(each.name for each in self.items("kernel")):
            yield [each for each in self.items("kernel", name) if not each.error]
