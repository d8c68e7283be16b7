"""`rpc://` targets: which board, and what its processor is. Importing this imports no TVM.

    rpc://HOST:PORT?triple=T&cpu=C          a TVM RPC server, that is, one board
    rpc://HOST:PORT/KEY?triple=T&cpu=C      a TVM RPC tracker, and the key its boards are known by

A key means a tracker, no key a server. Besides there are `features` (as LLVM names them, with
commas between and `+` or `-` before each), `cc` (what links libraries for the board, if the usual
names fail) and `boards` (how many of a tracker's boards to use; all by default).

What is compiled depends on the triple, the processor and its features only, and only these make two
targets different: a board keeps its table when its address changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn
from urllib.parse import quote, unquote, urlsplit

from nas.errors import RequestError

EXAMPLE = "rpc://127.0.0.1:9090?triple=aarch64-linux-gnu&cpu=cortex-a72"

_SCHEME = "rpc"
_CODE = ("triple", "cpu", "features")
_PLACE = ("cc", "boards")


@dataclass(frozen=True)
class RpcTarget:
    """A board, or the boards that a tracker knows by one key.

    Args:
        triple: architecture, system and ABI of the board, as LLVM and GCC name them.
        cpu: the board's processor, as LLVM names it.
        features: that the processor has (`+`) or lacks (`-`) beside what its name says.
        host: name or address; empty where a table only says what kind of board it belongs to.
        port: of the server or tracker.
        key: of the boards at a tracker; empty for a server.
        cc: a compiler or linker for the board; empty for the usual names.
        boards: how many to use; None for all that the tracker has.
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
        """The target without its address: what a table's header and file name say."""
        values = {"triple": self.triple, "cpu": self.cpu, "features": ",".join(self.features)}
        query = "&".join(f"{name}={quote(v, safe=',+')}" for name, v in values.items() if v)
        return f"{_SCHEME}?{query}"

    @property
    def address(self) -> str:
        """Where the board or tracker is, for a person."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f"/{self.key}" if self.key else "")

    @property
    def text(self) -> str:
        """The whole target, as `parse` reads it."""
        code = self.kind.partition("?")[2]
        place = "".join(
            f"&{name}={quote(str(value), safe='/')}"
            for name, value in (("cc", self.cc), ("boards", self.boards))
            if value
        )
        host, _, key = self.address.partition("/")
        return f"{_SCHEME}://{host}{'/' + quote(key) if key else ''}?{code}{place}"


def is_remote(target: str) -> bool:
    """Whether a target means boards somewhere else; `parse` says whether it is a good one."""
    return target.startswith((f"{_SCHEME}:", f"{_SCHEME}?"))


def kind_of(target: str) -> str:
    """A target as tables know it: without its address, where it has one."""
    return parse(target).kind if is_remote(target) else target


def parse(text: str) -> RpcTarget:
    """Reads a target. Raises RequestError, with an example, for anything malformed."""
    found = _read(text)
    if not found.host:
        _refuse(text, "it needs a host and a port")
    for name in ("triple", "cpu"):
        if not getattr(found, name):
            _refuse(text, f"it says no {name}")
    return found


def at_address(target: str, given: str | None) -> str:
    """A table's target, at the address that `given` says.

    Args:
        target: of a table's header.
        given: `rpc://HOST:PORT[/KEY]`, with whatever else overrides the target; None if nothing
            was given.

    Raises RequestError for a table of a board elsewhere where none was given, for an address where
    the table's device has none, and as `parse` does.
    """
    if not is_remote(target):
        if given is not None and given != target:
            raise RequestError(
                f"The table's device is '{target}', not '{given}'.", remedy="Leave --target out."
            )
        return target
    if given is None:
        raise RequestError(
            "The table belongs to a board behind TVM RPC, and does not say where it is.",
            remedy="Add --target rpc://HOST:PORT, or --target rpc://HOST:PORT/KEY for a tracker.",
        )
    table, address = _read(target), _read(given)
    values = {name: getattr(address, name) or getattr(table, name) for name in _CODE}
    return replace(address, **values).text


def _read(text: str) -> RpcTarget:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or 0
    except ValueError as error:
        _refuse(text, str(error))
    if parts.scheme not in (_SCHEME, "") or parts.fragment or parts.username is not None:
        _refuse(text, "it has more than an address, a key and settings")
    anonymous = text.startswith(f"{_SCHEME}?")
    if not anonymous and (not host or not port):
        _refuse(text, "it needs a host and a port")
    key = unquote(parts.path.removeprefix("/")) if not anonymous else ""
    if "/" in key or ":" in key or key != key.strip():
        _refuse(text, f"'{key}' is no tracker key")
    values = _settings(text, parts.query)
    boards = values.get("boards")
    if boards is not None and not (boards.isdecimal() and int(boards) > 0):
        _refuse(text, f"boards is '{boards}', not a number above 0")
    if boards is not None and not key:
        _refuse(text, "only a tracker, so a target with a key, has several boards")
    features = tuple(sorted(filter(None, values.get("features", "").split(","))))
    if any(each[0] not in "+-" or len(each) < 2 for each in features):
        _refuse(text, "every feature starts with + or -, such as +dotprod,-crypto")
    return RpcTarget(
        values.get("triple", ""),
        values.get("cpu", ""),
        features,
        host,
        port,
        key,
        values.get("cc", ""),
        int(boards) if boards else None,
    )


def _settings(text: str, query: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for setting in filter(None, query.split("&")):
        name, separator, value = setting.partition("=")
        if name not in (*_CODE, *_PLACE):
            _refuse(text, f"'{name}' is none of {', '.join((*_CODE, *_PLACE))}")
        if not separator or not value or name in found:
            _refuse(text, f"'{name}' should be given once, with a value")
        # Not parse_qsl: to it a plus, which starts a feature, is a space.
        found[name] = unquote(value)
    return found


def _refuse(text: str, why: str) -> NoReturn:
    raise RequestError(
        f"'{text}' is no target: {why}.",
        remedy=f"For example {EXAMPLE}, or with a tracker rpc://127.0.0.1:9190/pi4?triple=...; "
        "in a shell, put it in quotes.",
    )
