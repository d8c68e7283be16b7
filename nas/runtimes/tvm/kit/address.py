"""The targets of devices that are reached by a kit. Importing this imports no TVM.

    kit:NAME?triple=TRIPLE&cpu=CPU[&features=+x,-y]

NAME is the user's name of the device, to which its latency table belongs. The settings are those of
boards, see `nas.runtimes.tvm.rpc.address`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nas.runtimes.boards.address import parse_settings, refuse, with_settings
from nas.runtimes.tvm.rpc.address import parse_features, require_processor

EXAMPLE = "kit:pixel-6?triple=aarch64-linux-gnu&cpu=cortex-a76"

_SCHEME = "kit:"
_SETTINGS = ("triple", "cpu", "features")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


@dataclass(frozen=True)
class KitTarget:
    """A device that is reached by a kit.

    Args:
        name: the user's name of the device.
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
        return with_settings(f"{_SCHEME}{self.name}", settings)


def is_kit(target: str) -> bool:
    """Return whether a target names a device that is reached by a kit."""
    return target.startswith(_SCHEME)


def parse(text: str) -> KitTarget:
    """Parse a target. Raises RequestError, with an example, if it is none."""
    start, _, query = text.partition("?")
    name = start.removeprefix(_SCHEME)
    if not is_kit(text) or _NAME.fullmatch(name) is None:
        refuse(
            text,
            f"'{name}' is no name of a device, which has 1 to 40 letters, digits, '.', '_' or '-', "
            "and begins with a letter or a digit",
            EXAMPLE,
        )
    settings = parse_settings(text, query, _SETTINGS, EXAMPLE)
    require_processor(text, settings, EXAMPLE)
    features = parse_features(text, settings, EXAMPLE)
    return KitTarget(name, settings["triple"], settings["cpu"], features)
