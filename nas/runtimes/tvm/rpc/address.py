"""The targets of boards for which TVM compiles. Importing this imports no TVM.

`nas.runtimes.boards.address` has their form. Their settings are `triple` and `cpu`, and optionally
`features` (as LLVM names them, separated by commas, each with `+` or `-` before it) and `cc` (the
linker for the board, if the usual ones do not fit).

Compiled code depends only on the triple, the processor and its features, and tables are told apart
by these alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from nas.runtimes.boards import address as board_address
from nas.runtimes.boards.address import BoardAddress, is_remote, refuse, target_text

EXAMPLE = "rpc://127.0.0.1:9090?triple=aarch64-linux-gnu&cpu=cortex-a72"

_EXAMPLES = f"{EXAMPLE}, or with a tracker rpc://127.0.0.1:9190/pi4?triple=..."

_SETTINGS = ("triple", "cpu", "features", "cc")


@dataclass(frozen=True)
class RpcTarget(BoardAddress):
    """A board, or all boards that a tracker has under one key; see `BoardAddress`.

    Args:
        triple: architecture, system and ABI of the board, as LLVM and GCC name them.
        cpu: processor of the board, as LLVM names it.
        features: features that the processor has (`+`) or lacks (`-`), unlike others of its name.
        cc: compiler or linker for the board; empty for the usual ones.
    """

    triple: str = ""
    cpu: str = ""
    features: tuple[str, ...] = ()
    cc: str = ""

    @property
    def kind(self) -> str:
        """The target without its address, as in the header and the file name of a table."""
        code_settings = {"triple": self.triple, "cpu": self.cpu}
        return target_text(None, {**code_settings, "features": ",".join(self.features)})


def kind_of(target: str) -> str:
    """Return a target without its address, as tables name it."""
    return parse(target).kind if is_remote(target) else target


def parse(text: str) -> RpcTarget:
    """Parse a target that has an address. Raises RequestError, with an example, if it is none."""
    at, settings = board_address.parse(text, _SETTINGS, _EXAMPLES)
    features = parse_features(text, settings, _EXAMPLES)
    if not at.host:
        refuse(text, "it needs a host and a port", _EXAMPLES)
    require_processor(text, settings, _EXAMPLES)
    return RpcTarget(**{**asdict(at), **settings, "features": features})


def parse_features(text: str, settings: Mapping[str, str], example: str) -> tuple[str, ...]:
    """Return the features in the settings of a target, sorted. Raises RequestError."""
    features = tuple(sorted(filter(None, settings.get("features", "").split(","))))
    if any(each[0] not in "+-" or len(each) < 2 for each in features):
        refuse(text, "every feature starts with + or -, such as +dotprod,-crypto", example)
    return features


def require_processor(text: str, settings: Mapping[str, str], example: str) -> None:
    """Raise RequestError if the settings of a target lack the triple or the processor."""
    for name in ("triple", "cpu"):
        if name not in settings:
            refuse(text, f"it has no {name}", example)


def at_address(target: str, address: str | None) -> str:
    """Return the target of a table of boards with an address.

    Args:
        target: target in the header of the table.
        address: `rpc://HOST:PORT[/KEY]`, with settings that override those of the table; None if
            the user gave nothing.

    Raises:
        RequestError: the address is missing or malformed.
    """
    _, of_table = board_address.parse(target, _SETTINGS, _EXAMPLES)
    return board_address.at_address(target, of_table, address, _SETTINGS, _EXAMPLES)
