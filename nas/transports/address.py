"""Addresses of devices, with the settings that a runtime has behind them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn
from urllib.parse import quote, unquote, urlsplit

from nas.errors import RequestError
from nas.transports.base import Transport

EXAMPLE = "ssh://pi@10.0.0.7, or adb:"

DEVICE = "device"
"""Start of the target of a device in the header of a table, which has no address."""

_SCHEMES = ("ssh://", "adb:")
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")
"""Names of hosts and users that no program mistakes for an option. Colons stand in IPv6."""

_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@\\$+-]*")

_SERIAL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")
"""Serial numbers; those of devices in a network are HOST:PORT."""


def is_address(target: str) -> bool:
    """Return whether a target begins with the address of a device."""
    return target.startswith(_SCHEMES)


def joined_targets(targets: Sequence[str]) -> str:
    """Return the target of several equal devices: their addresses, and the settings of all.

    Raises:
        RequestError: the settings differ.
    """
    queries = {each.partition("?")[2] for each in targets}
    if len(queries) > 1:
        refuse(" ".join(targets), "settings of equal devices are the same ones", EXAMPLE)
    addresses = " ".join(each.partition("?")[0] for each in targets)
    return "?".join([addresses, *filter(None, queries)])


def separate_targets(target: str) -> list[str]:
    """Return the target of each of the devices in a target: see `joined_targets`."""
    addresses, separator, query = target.partition("?")
    return [f"{each}{separator}{query}" for each in addresses.split()]


def split_address(target: str, settings: Sequence[str] = ()) -> tuple[str, Mapping[str, str]]:
    """Return the address in a target, and its settings by name.

    Args:
        target: an address, with `?NAME=VALUE&...` behind it or not.
        settings: names of the settings that it may have.

    Raises:
        RequestError: it is no address, or has other settings.
    """
    address, _, query = target.partition("?")
    transport_to(address)
    return address, parse_settings(target, query, settings, EXAMPLE)


def is_device(target: str) -> bool:
    """Return whether a target is that of a device without its address, in the header of a table."""
    return target.startswith(f"{DEVICE}?")


def at_address(
    target: str, address: str | None, settings: Sequence[str], *, of_address: Collection[str] = ()
) -> str:
    """Return the target in the header of a table with the address that the user gave.

    Args:
        target: the target in the header, with settings or not.
        address: what the user gave; its settings come first.
        settings: names of the settings that both may have.
        of_address: names of those that the header has for the fingerprint only.

    Raises:
        RequestError: the user gave no address.
    """
    if address is None or not is_address(address):
        raise RequestError(
            f"The table belongs to a device ({target}), and does not hold its address.",
            remedy="Add --target with the address, such as ssh://USER@HOST or adb:.",
        )
    at, own = split_address(address, settings)
    of_table = parse_settings(target, target.partition("?")[2], settings, target)
    of_header = {name: value for name, value in of_table.items() if name not in of_address}
    return with_settings(at, {**of_header, **own})


def transport_to(address: str) -> Transport:
    """Return the transport to an address, which connects when it is first used.

    Args:
        address: the address, or those of equal devices with spaces between.

    Raises:
        RequestError: it is no address.
    """
    from nas.transports.adb import AdbTransport
    from nas.transports.equal import EqualDevices
    from nas.transports.ssh import SshTransport

    several = address.split()
    if len(several) > 1:
        if len(set(several)) < len(several):
            refuse(address, "a device is named twice", EXAMPLE)
        return EqualDevices([transport_to(each) for each in several])
    if address.startswith("adb:"):
        serial = address.removeprefix("adb:")
        if serial and not _SERIAL.fullmatch(serial):
            refuse(address, f"'{serial}' is no serial number, as `adb devices` lists them", EXAMPLE)
        return AdbTransport(address, serial)
    if not address.startswith("ssh://"):
        refuse(address, "it begins with none of ssh:// and adb:", EXAMPLE)
    try:
        parts = urlsplit(address)
        at, separator, place = parts.netloc.rpartition("@")
        user = at if separator else None
        # `hostname` has small letters, and the aliases of a configuration need not.
        host = place.removeprefix("[").partition("]")[0] if place.startswith("[") else place
        host, port = host if place.startswith("[") else host.partition(":")[0], parts.port
    except ValueError as error:
        refuse(address, str(error), EXAMPLE)
    if parts.path.strip("/") or parts.fragment or parts.query or port == 0:
        refuse(address, "it has more than a user, a host and a port", EXAMPLE)
    host, user = unquote(host), None if user is None else unquote(user)
    for what, name, form in (("host", host.replace(":", ""), _NAME), ("user", user, _USER)):
        if name is not None and not form.fullmatch(name):
            refuse(address, f"'{name}' is no name of a {what}", EXAMPLE)
    return SshTransport(address.rstrip("/"), host, user, port)


def parse_settings(target: str, query: str, known: Sequence[str], example: str) -> dict[str, str]:
    """Return the settings of a target, by name.

    Args:
        target: the target.
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
            names = ", ".join(known) or "no settings"
            refuse(target, f"it has '{name}', and there are {names}", example)
        if not separator or not value or name in settings:
            refuse(target, f"'{name}' should be given once, with a value", example)
        # parse_qsl would read a plus, which starts a feature, as a space.
        settings[name] = unquote(value)
    return settings


def with_settings(text: str, settings: Mapping[str, object]) -> str:
    """Return a target with the settings that have a value, as `parse_settings` reads them."""
    query = "&".join(f"{name}={quote(str(v), safe='/,+:')}" for name, v in settings.items() if v)
    return f"{text}?{query}" if query else text


def refuse(target: str, reason: str, example: str) -> NoReturn:
    """Raise RequestError for a target that is none."""
    raise RequestError(
        f"'{target}' is not a target: {reason}.",
        remedy=f"For example {example}; in a shell, put it in quotes.",
    )
