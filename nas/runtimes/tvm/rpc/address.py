"""`rpc://` targets: the address of a board and its processor. Importing this imports no TVM.

    rpc://HOST:PORT?triple=T&cpu=C          a TVM RPC server, that is, one board
    rpc://HOST:PORT/KEY?triple=T&cpu=C      a TVM RPC tracker, and the key of its boards

A target with a key names a tracker, one without a key a server. Optional settings are `features`
(as LLVM names them, separated by commas, each with `+` or `-` before it), `cc` (the linker for the
board, if the usual ones do not fit) and `boards` (how many boards of a tracker to use; all by
default).

Compiled code depends only on the triple, the processor and its features, and tables are told apart
by these alone: a board keeps its table when its address changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn
from urllib.parse import quote, unquote, urlsplit

from nas.errors import RequestError

EXAMPLE = "rpc://127.0.0.1:9090?triple=aarch64-linux-gnu&cpu=cortex-a72"

_SCHEME = "rpc"

_CODE_SETTINGS = ("triple", "cpu", "features")
"""Settings on which compiled code depends."""

_ACCESS_SETTINGS = ("cc", "boards")
"""Settings on which it does not depend."""


@dataclass(frozen=True)
class RpcTarget:
    """A board, or all boards that a tracker has under one key.

    Args:
        triple: architecture, system and ABI of the board, as LLVM and GCC name them.
        cpu: processor of the board, as LLVM names it.
        features: features that the processor has (`+`) or lacks (`-`), unlike others of its name.
        host: name or address of the server or tracker; empty in the header of a table.
        port: port of the server or tracker.
        key: key of the boards at a tracker; empty for a server.
        cc: compiler or linker for the board; empty for the usual ones.
        boards: number of boards to use; None for all that the tracker has.
    """

    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    host: str = ""
    port: int = 0
    key: str = ""
    cc: str = ""
    boards: int | None = None

    @property
    def kind(self) -> str:
        """The target without its address, as in the header and the file name of a table."""
        values = {"triple": self.triple, "cpu": self.cpu, "features": ",".join(self.features)}
        query = "&".join(f"{name}={quote(v, safe=',+')}" for name, v in values.items() if v)
        return f"{_SCHEME}?{query}"

    @property
    def address(self) -> str:
        """The address of the board or tracker, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f"/{self.key}" if self.key else "")

    @property
    def text(self) -> str:
        """The whole target, as `parse` reads it."""
        code_settings = self.kind.partition("?")[2]
        access_settings = "".join(
            f"&{name}={quote(str(value), safe='/')}"
            for name, value in (("cc", self.cc), ("boards", self.boards))
            if value
        )
        host, _, key = self.address.partition("/")
        path = f"/{quote(key)}" if key else ""
        return f"{_SCHEME}://{host}{path}?{code_settings}{access_settings}"


def is_remote(target: str) -> bool:
    """Return whether a target names boards behind TVM RPC; `parse` checks it."""
    return target.startswith((f"{_SCHEME}:", f"{_SCHEME}?"))


def kind_of(target: str) -> str:
    """Return a target without its address, as tables name it."""
    return parse(target).kind if is_remote(target) else target


def parse(text: str) -> RpcTarget:
    """Parse a target that has an address. Raises RequestError, with an example, if it is none."""
    target = _parse(text)
    if not target.host:
        _refuse(text, "it needs a host and a port")
    for name, value in (("triple", target.triple), ("cpu", target.cpu)):
        if not value:
            _refuse(text, f"it has no {name}")
    return target


def at_address(target: str, address: str | None) -> str:
    """Return the target of a table with an address.

    Args:
        target: target in the header of the table.
        address: `rpc://HOST:PORT[/KEY]`, with settings that override those of the table; None if
            the user gave nothing.

    Raises:
        RequestError: the address is missing or malformed, or the device of the table has none.
    """
    if not is_remote(target):
        if address is not None and address != target:
            raise RequestError(
                f"The device of the table is '{target}', not '{address}'.",
                remedy="Leave --target out.",
            )
        return target
    if address is None:
        raise RequestError(
            "The table belongs to a board behind TVM RPC, and does not hold its address.",
            remedy="Add --target rpc://HOST:PORT, or --target rpc://HOST:PORT/KEY for a tracker.",
        )
    of_table, at = _parse(target), _parse(address)
    return replace(
        at,
        triple=at.triple or of_table.triple,
        cpu=at.cpu or of_table.cpu,
        features=at.features or of_table.features,
    ).text


def _parse(text: str) -> RpcTarget:
    """Parse a target with or without an address."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or 0
    except ValueError as error:
        _refuse(text, str(error))
    if parts.scheme not in (_SCHEME, "") or parts.fragment or parts.username is not None:
        _refuse(text, "it has more than an address, a key and settings")
    has_address = not text.startswith(f"{_SCHEME}?")
    if has_address and (not host or not port):
        _refuse(text, "it needs a host and a port")
    key = unquote(parts.path.removeprefix("/")) if has_address else ""
    if "/" in key or ":" in key or key != key.strip():
        _refuse(text, f"'{key}' is not a tracker key")
    settings = _parse_settings(text, parts.query)
    boards = settings.get("boards")
    if boards is not None and not (boards.isdecimal() and int(boards) > 0):
        _refuse(text, f"boards is '{boards}', not a number above 0")
    if boards is not None and not key:
        _refuse(text, "only a tracker, that is, a target with a key, has several boards")
    features = tuple(sorted(filter(None, settings.get("features", "").split(","))))
    if any(each[0] not in "+-" or len(each) < 2 for each in features):
        _refuse(text, "every feature starts with + or -, such as +dotprod,-crypto")
    return RpcTarget(
        settings.get("triple", ""),
        settings.get("cpu", ""),
        features,
        host,
        port,
        key,
        settings.get("cc", ""),
        int(boards) if boards else None,
    )


def _parse_settings(text: str, query: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    known = (*_CODE_SETTINGS, *_ACCESS_SETTINGS)
    for setting in filter(None, query.split("&")):
        name, separator, value = setting.partition("=")
        if name not in known:
            _refuse(text, f"'{name}' is none of {', '.join(known)}")
        if not separator or not value or name in settings:
            _refuse(text, f"'{name}' should be given once, with a value")
        # parse_qsl would read a plus, which starts a feature, as a space.
        settings[name] = unquote(value)
    return settings


def _refuse(text: str, reason: str) -> NoReturn:
    raise RequestError(
        f"'{text}' is not a target: {reason}.",
        remedy=f"For example {EXAMPLE}, or with a tracker rpc://127.0.0.1:9190/pi4?triple=...; "
        "in a shell, put it in quotes.",
    )
