"""`Results`: what the program of a kit wrote on the device, from its file `results.jsonl`.

Importing this imports no TVM.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, RootModel

from nas.errors import RequestError
from nas.files import jsonl
from nas.files.documents import Count, Document, Format, shortened
from nas.latency.core_speed import is_at_full_speed
from nas.latency.device import Fingerprint, Text
from nas.latency.kit import MANIFEST as MANIFEST_FILE
from nas.latency.kit import RESULTS
from nas.latency.rounds import Latency, full_speed_us
from nas.latency.timing import Attempt, Timing
from nas.runtimes.tvm.kit.manifest import MANIFEST, Item, Manifest
from nas.transports.facts import DeviceFacts

_Microseconds = Annotated[float, Field(ge=1e-6, le=1e12)]
"""Microseconds, so that parts of them and sums are within the limits of latency tables."""

_SystemText = Annotated[str, Field(max_length=1 << 14)]

SAME_DEVICE = ("processor", "features", "board", "cores")
"""What a device says of itself that stays the same."""


class _Device(Document):
    """Texts of the system of the device, see `nas.transports.facts`; it may lack each of them."""

    machine: _SystemText = ""
    bits: _SystemText = ""
    kernel: _SystemText = ""
    cpuinfo: _SystemText = ""
    meminfo: _SystemText = ""
    release: _SystemText = ""
    model: _SystemText = ""
    present: _SystemText = ""
    governors: _SystemText = ""
    clocks: _SystemText = ""

    @cached_property
    def recorded(self) -> dict[str, JsonValue]:
        """What a latency table records of the device."""
        facts = DeviceFacts.from_parts(self.model_dump())
        return {
            "processor": facts.processor,
            "features": [*facts.features],
            **facts.recorded,
        }


class _Start(Document):
    """The program was started."""

    line: Literal["start"]
    schema_version: Literal[2] = Field(alias="schema")
    kit: Text
    core: Count
    device: _Device


class _Failed(Document):
    """An item computes something wrong."""

    line: Literal["failed"]
    item: Count
    error: Text


class _Quick(Document):
    """A quick timing, by which the program chooses what it times."""

    line: Literal["quick"]
    item: Count
    us: _Microseconds


class _Timing(Document):
    """A timing in one round: for each attempt at a sample its microseconds, the readings before and
    after it, and whether the thread was preempted; and the reading at full speed, as far as the
    program knows it."""

    line: Literal["timing"]
    item: Count
    round: Count
    calls: Count
    full_us: _Microseconds
    attempts: Annotated[
        tuple[tuple[_Microseconds, _Microseconds, _Microseconds, Literal[0, 1]], ...],
        Field(min_length=1, max_length=1000),
    ]


class _End(Document):
    """The program ended."""

    line: Literal["end"]
    reason: Literal["done", "time", "interrupted", "hot"]


class _Line(
    RootModel[Annotated[_Start | _Failed | _Quick | _Timing | _End, Field(discriminator="line")]]
):
    """A line of the file."""


_LINES = Format(
    _Line,
    "a line of the results of a kit",
    RequestError,
    "Copy the file from the device again; if it is damaged there, remove the line.",
)


@dataclass(frozen=True)
class Results:
    """What a kit measured on its device.

    Args:
        manifest: what the kit times.
        device: what the device said of itself.
        attempts: attempts at samples of each round, by number of the item.
        errors: why an item cannot be timed, by its number.
        overheated_us: reading at full speed if the program gave up on a device that stayed hot,
            and else None.
    """

    manifest: Manifest
    device: Mapping[str, JsonValue]
    attempts: Mapping[int, Sequence[Sequence[Attempt]]]
    errors: Mapping[int, str]
    overheated_us: float | None

    @classmethod
    def read(
        cls, folder: Path, content: Literal["kernels", "networks"], device: Fingerprint
    ) -> Self:
        """Return the results in the folder of a kit.

        Args:
            folder: the folder, with `kit.json` and `results.jsonl`.
            content: what the kit should time.
            device: the device that it should be for.

        Raises:
            RequestError: a file is missing or damaged, or belongs to another kit, device or
                version.
        """
        path = folder / RESULTS
        if not path.exists():
            raise RequestError(
                f"There is no {path}.",
                remedy=f"Run the kit on the device, and copy its {RESULTS} into this folder.",
            )
        manifest = MANIFEST.read(folder / MANIFEST_FILE)
        _require_kit(manifest, folder, content, device)
        lines = [each.root for each in jsonl.read(path, _LINES)]
        starts = [each for each in lines if isinstance(each, _Start)]
        if not starts or starts[0] is not lines[0]:
            raise _LINES.failure(f"{path} does not begin with the start of a kit")
        _require_one_device(starts, manifest, path)
        for each in lines:
            if isinstance(each, _Failed | _Quick | _Timing) and each.item >= len(manifest.items):
                raise _LINES.failure(f"{path} has item {each.item}, which its kit has not")
        if repeated := _repeated_rounds(lines):
            warnings.warn(
                f"{path}: {repeated} rounds were timed twice. Programs that time at the same time "
                "slow each other: remove the file on the device, and let one program time "
                "everything again.",
                stacklevel=2,
            )
        made = {item.id: item.error for item in manifest.items if item.error}
        failed = {each.item: each.error for each in lines if isinstance(each, _Failed)}
        speeds = [each.full_us for each in lines if isinstance(each, _Timing)]
        ends = [each.reason for each in lines if isinstance(each, _End)]
        return cls(
            manifest,
            {**starts[-1].device.recorded, "core": starts[-1].core},
            _attempts(lines, manifest),
            {**made, **failed},
            min(speeds, default=None) if ends[-1:] == ["hot"] else None,
        )

    def items(self, part: Literal["kernel", "dispatch", "network"]) -> dict[str, list[Item]]:
        """Return the items of a part by name; a kernel has one for each of its candidates."""
        items: dict[str, list[Item]] = {}
        for item in self.manifest.items:
            if item.part == part:
                items.setdefault(item.name, []).append(item)
        return items

    def timings(self, item: Item) -> list[Timing]:
        """Return the timings of an item, one a round."""
        return [Timing.from_attempts(each) for each in self.attempts[item.id]]

    def network_latencies(self) -> dict[str, Latency]:
        """Return the latency of each network that was timed or failed, by digest."""
        timed = {
            name: (own[0], self.timings(own[0])) for name, own in self.items("network").items()
        }
        readings_us = (each.reading_us for _, own in timed.values() for each in own)
        full_us = full_speed_us(readings_us, self.overheated_us)
        return {
            digest: Latency(own, full_us, self.errors.get(item.id))
            for digest, (item, own) in timed.items()
            if own or item.id in self.errors
        }


def _require_kit(manifest: Manifest, folder: Path, content: str, device: Fingerprint) -> None:
    """Raise RequestError for a kit of another content, device or version."""
    kinds = {"kernels": "`nas table import` reads it", "networks": "`nas kit networks` reads it"}
    if manifest.content != content:
        raise RequestError(
            f"{folder} is a kit of {manifest.content}, not of {content}.",
            remedy=f"{kinds[manifest.content]}.".capitalize(),
        )
    if manifest.target != device.target:
        raise RequestError(
            f"The kit in {folder} is for '{manifest.target}', not for '{device.target}'.",
            remedy="Use the target with which the kit was made.",
        )
    for name, version in device.versions.items():
        made = manifest.versions.get(name)
        if made != version:
            raise RequestError(
                f"The kit in {folder} was made with {name} {made}, and here is {version}: "
                "latencies of different versions cannot be compared.",
                remedy="Make the kit again, and run it on the device.",
            )


def _require_one_device(starts: Sequence[_Start], manifest: Manifest, path: Path) -> None:
    """Raise RequestError if the program was another one, or ran on several devices."""
    first = starts[0]
    for start in starts:
        if start.kit != manifest.kit:
            raise RequestError(
                f"{path} has results of kit {start.kit}, but {MANIFEST_FILE} beside it "
                f"belongs to kit {manifest.kit}.",
                remedy=f"Copy {RESULTS} into the folder of its own kit.",
            )
        require_same_device(first.device.recorded, start.device.recorded, str(path))


def require_same_device(
    one: Mapping[str, JsonValue], other: Mapping[str, JsonValue], what: str
) -> None:
    """Raise RequestError if two devices say something else of themselves.

    Args:
        one, other: what the devices said.
        what: what has timings of both, for the message.
    """
    for name in SAME_DEVICE:
        if one.get(name) != other.get(name):
            raise RequestError(
                f"{what} has timings of two devices: {name} is {shortened(one.get(name))}, and "
                f"{shortened(other.get(name))}.",
                remedy="Make a kit with another name for each device, such as kit:phone-1 and "
                "kit:phone-2, and keep their results apart.",
            )


def _repeated_rounds(lines: Iterable[object]) -> int:
    """Return the number of rounds of an item that are there with different timings."""
    timings = {
        (each.item, each.round, each.attempts) for each in lines if isinstance(each, _Timing)
    }
    return len(timings) - len({(item, number) for item, number, _ in timings})


def _attempts(lines: Iterable[object], manifest: Manifest) -> dict[int, list[list[Attempt]]]:
    """Return the attempts of each round, by item, as undisturbed as the program knew then."""
    attempts: dict[int, list[list[Attempt]]] = {item.id: [] for item in manifest.items}
    seen: set[object] = set()
    for each in lines:
        if not isinstance(each, _Timing):
            continue
        # A file to which another copy of itself was appended has lines twice.
        identity = (each.item, each.round, each.attempts)
        if identity not in seen:
            seen.add(identity)
            attempts[each.item].append(
                [
                    Attempt(
                        1e-6 * us,
                        1e-6 * max(before, after),
                        not preempted and is_at_full_speed(max(before, after), each.full_us),
                    )
                    for us, before, after, preempted in each.attempts
                ]
            )
    return attempts
