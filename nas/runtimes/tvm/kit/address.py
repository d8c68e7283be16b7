"""The targets of devices for which TVM compiles a program. Importing this imports no TVM.

    kit:NAME?triple=TRIPLE&cpu=CPU[&features=+x,-y]         a person carries the program
    ssh://HOST[?triple=TRIPLE&cpu=CPU&features=+x,-y]       see `nas.transports`
    device?triple=TRIPLE&cpu=CPU[&features=+x,-y]           in the header of a table

NAME is the user's name of the device, to which its latency table belongs. The table of a device
with an address belongs to its processor: its header has no address. Such a device says itself what
its processor is, unless the target does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nas.transports import is_address, split_address
from nas.transports.address import DEVICE, is_device, parse_settings, refuse, with_settings
from nas.transports.facts import DeviceFacts

EXAMPLE = "kit:pixel-6?triple=aarch64-linux-gnu&cpu=cortex-a76"

_SCHEME = "kit:"
SETTINGS = ("triple", "cpu", "features")
"""Names of the settings of a target: LLVM's names of the processor."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True)
class KitTarget:
    """A device for which a program is compiled.

    Args:
        name: the user's name of a device that a person reaches; empty for one with an address.
        triple: architecture, system and ABI of the device, as LLVM and GCC name them.
        cpu: processor of the device, as LLVM names it.
        features: features that the processor has (`+`) or lacks (`-`), unlike others of its name;
            sorted.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The target in its canonical form, as the header of a table has it."""
        settings = {"triple": self.triple, "cpu": self.cpu, "features": ",".join(self.features)}
        return with_settings(f"{_SCHEME}{self.name}" if self.name else DEVICE, settings)


def is_carried(target: str) -> bool:
    """Return whether a person carries the programs of a device."""
    return target.startswith(_SCHEME)


def is_kit(target: str) -> bool:
    """Return whether a target names a device for which a program is compiled."""
    return is_carried(target) or is_address(target) or is_device(target)


def parse(text: str) -> KitTarget:
    """Parse a target without an address. Raises RequestError, with an example, if it is none."""
    start, _, query = text.partition("?")
    name = start.removeprefix(_SCHEME)
    if not is_carried(text) and start != DEVICE:
        refuse(text, "it is no device that is reached by a program", EXAMPLE)
    if is_carried(text) and _NAME.fullmatch(name) is None:
        refuse(
            text,
            f"'{name}' is no name of a device, which has 1 to 40 letters, digits, '.', '_' or '-', "
            "and begins with a letter or a digit",
            EXAMPLE,
        )
    settings = parse_settings(text, query, SETTINGS, EXAMPLE)
    for required in ("triple", "cpu"):
        if required not in settings:
            refuse(text, f"it has no {required}", EXAMPLE)
    own_name = name if is_carried(text) else ""
    features = _features(text, settings)
    return KitTarget(own_name, settings["triple"], settings["cpu"], features)


def parse_address(text: str) -> tuple[str, Mapping[str, str]]:
    """Return the address in a target, and its settings. Raises RequestError if it is none."""
    address, settings = split_address(text, SETTINGS)
    _features(text, settings)
    return address, settings


def described(text: str, facts: DeviceFacts) -> KitTarget:
    """Return the device of a target with an address, by what the target and the device say."""
    _, settings = parse_address(text)
    return KitTarget(
        "",
        settings.get("triple", facts.triple),
        settings.get("cpu", facts.cpu),
        _features(text, settings),
    )


def _features(text: str, settings: Mapping[str, str]) -> tuple[str, ...]:
    """Return the features in the settings of a target, sorted. Raises RequestError."""
    features = tuple(sorted(filter(None, settings.get("features", "").split(","))))
    if any(each[0] not in "+-" or len(each) < 2 for each in features):
        refuse(text, "every feature starts with + or -, such as +dotprod,-crypto", EXAMPLE)
    return features
