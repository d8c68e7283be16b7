"""Addresses of boards in `rpc://` targets, and what boards say of themselves.

    rpc://HOST:PORT?NAME=VALUE&...          a TVM RPC server, that is, one board
    rpc://HOST:PORT/KEY?NAME=VALUE&...      a TVM RPC tracker, and the key of its boards

A target with a key names a tracker, one without a key a server. A runtime says which settings its
targets have; every one has `boards`, how many boards of a tracker to use. The header of a table has
a target without an address, `rpc?NAME=VALUE&...`: a board keeps its table when its address changes.

Importing this imports no TVM.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import quote, unquote, urlsplit

from nas.errors import RequestError

SCHEME = "rpc"


@dataclass(frozen=True)
class BoardAddress:
    """The address of a board, or of a tracker and its boards under one key.

    Args:
        host: name or address of the server or tracker; empty in the header of a table.
        port: port of the server or tracker.
        key: key of the boards at a tracker; empty for a server.
        boards: number of boards to use; None for all that the tracker has.
    """

    host: str = ""
    port: int = 0
    key: str = ""
    boards: int | None = None

    @property
    def address(self) -> str:
        """The address of the board or tracker, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f"/{self.key}" if self.key else "")


def is_remote(target: str) -> bool:
    """Return whether a target names boards behind TVM RPC, with or without an address."""
    return target == SCHEME or target.startswith((f"{SCHEME}:", f"{SCHEME}?"))


def parse(
    text: str, settings: Sequence[str], example: str
) -> tuple[BoardAddress, Mapping[str, str]]:
    """Return the address in a target, and its settings by their names.

    Args:
        text: the target, with or without an address.
        settings: names of the settings that it may have.
        example: a correct target, for the remedy.

    Raises:
        RequestError: it is no target.
    """
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port or 0
    except ValueError as error:
        refuse(text, str(error), example)
    if parts.scheme not in (SCHEME, "") or parts.fragment or parts.username is not None:
        refuse(text, "it has more than an address, a key and settings", example)
    has_address = text.partition("?")[0] != SCHEME
    if has_address and (not host or not port):
        refuse(text, "it needs a host and a port", example)
    key = unquote(parts.path.removeprefix("/")) if has_address else ""
    if "/" in key or ":" in key or key != key.strip():
        refuse(text, f"'{key}' is not a tracker key", example)
    values = parse_settings(text, parts.query, (*settings, "boards"), example)
    boards = values.pop("boards", None)
    if boards is not None and not (boards.isdecimal() and int(boards) > 0):
        refuse(text, f"boards is '{boards}', not a number above 0", example)
    if boards is not None and not key:
        refuse(text, "only a tracker, that is, a target with a key, has several boards", example)
    return BoardAddress(host, port, key, int(boards) if boards else None), values


def target_text(address: BoardAddress | None, settings: Mapping[str, object]) -> str:
    """Return a target as `parse` reads it.

    Args:
        address: the address; None for the target in the header of a table.
        settings: settings by name; those without a value are left out.
    """
    given = dict(settings)
    text = SCHEME
    if address is not None:
        host, _, key = address.address.partition("/")
        text += f"://{host}" + (f"/{quote(key)}" if key else "")
        given["boards"] = address.boards
    return with_settings(text, given)


def with_settings(text: str, settings: Mapping[str, object]) -> str:
    """Return a target with the settings that have a value, as `parse_settings` reads them."""
    query = "&".join(f"{name}={quote(str(v), safe='/,+:')}" for name, v in settings.items() if v)
    return f"{text}?{query}" if query else text


def at_address(
    target: str,
    of_table: Mapping[str, str],
    address: str | None,
    settings: Sequence[str],
    example: str,
) -> str:
    """Return the target of a table of boards with the address that the user gave.

    Args:
        target: target in the header of the table, without an address.
        of_table: its settings, which those of the address override.
        address: what the user gave; None for nothing.
        settings: see `parse`.
        example: see `parse`.

    Raises:
        RequestError: the user gave nothing, or no address of a board.
    """
    if address is None or not is_remote(address):
        raise RequestError(
            f"The table belongs to a board behind TVM RPC ({target}), and does not hold its "
            "address.",
            remedy=f"Add --target {SCHEME}://HOST:PORT, or --target {SCHEME}://HOST:PORT/KEY for a "
            "tracker.",
        )
    at, own = parse(address, settings, example)
    return target_text(at, {**of_table, **own})


def refuse(text: str, reason: str, example: str) -> NoReturn:
    """Raise RequestError for a target that is none."""
    raise RequestError(
        f"'{text}' is not a target: {reason}.",
        remedy=f"For example {example}; in a shell, put it in quotes.",
    )


def parse_settings(text: str, query: str, known: Sequence[str], example: str) -> dict[str, str]:
    """Return the settings of a target, by name.

    Args:
        text: the target.
        query: its part behind the question mark.
        known: names of the settings that it may have.
        example: a correct target, for the remedy.

    Raises:
        RequestError: a setting has another name, has no value, or is given twice.
    """
    settings: dict[str, str] = {}
    for setting in filter(None, query.split("&")):
        name, separator, value = setting.partition("=")
        if name not in known:
            refuse(text, f"'{name}' is none of {', '.join(known)}", example)
        if not separator or not value or name in settings:
            refuse(text, f"'{name}' should be given once, with a value", example)
        # parse_qsl would read a plus, which starts a feature, as a space.
        settings[name] = unquote(value)
    return settings


@dataclass(frozen=True)
class BoardDescription:
    """What the fingerprint of a board needs.

    Args:
        processor: model of the processor.
        features: vector features of the processor, sorted.
        recorded: facts that a table records, but that need not match.
        versions: version of the interpreter of a board that times files, and digest and options of
            its delegate.
        delegate: file name of the delegate; empty for none.
    """

    processor: str
    features: tuple[str, ...]
    recorded: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    delegate: str = ""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> BoardDescription:
        """Return the description with these fields. Raises KeyError if one is missing."""
        values = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**{**values, "features": tuple(record["features"])})

    @property
    def summary(self) -> str:
        """The part in which equal boards are equal, as text."""
        software = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        hardware = f"{self.processor} ({' '.join(self.features)})"
        return f"{hardware} with {software}" if software else hardware
