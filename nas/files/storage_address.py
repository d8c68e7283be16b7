"""The address of a storage: parsing it, and showing it without its secrets."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard
from urllib.parse import quote, quote_plus

from nas.errors import RequestError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

REDACTED = "***"
"""Replacement in messages for text that may hold a password."""

_SECRET_KEY = re.compile("pass|pwd|secret|token|key$", re.IGNORECASE)
"""Keys of an address's query whose values may be secret: password, sslpassword, token, api_key."""

_HARMLESS_KEYS = {"passfile", "sslkey", "ssl_key"}
"""Keys that look like such keys and name files."""


def redact_address(location: Path | str) -> str:
    """Return the location of a storage without secrets, to show or to store.

    The address still opens the storage if PGPASSWORD or ~/.pgpass provides the password.

    Raises RequestError for an address that cannot be parsed.
    """
    if not is_address(location):
        return str(location)
    address = parse_address(location)
    secret_keys = [key for key in address.query if _is_secret(key)]
    bare = address.difference_update_query(secret_keys)._replace(password=None)
    return bare.render_as_string(hide_password=False)


def redact(text: str, location: Path | str | None) -> str:
    """Return a text, such as a driver's message, with the secrets of an address redacted."""
    if not is_address(location):
        return text
    address = parse_address(location)
    secrets = [str(address.password)] if address.password else []
    for key, values in address.normalized_query.items():
        if _is_secret(key):
            secrets += values
    for secret in filter(None, secrets):
        for form in (secret, quote(secret, safe=""), quote_plus(secret), quote(secret)):
            text = text.replace(form, REDACTED)
    return text


def _is_secret(key: str) -> bool:
    return key not in _HARMLESS_KEYS and _SECRET_KEY.search(key) is not None


def may_hold_password(text: str) -> bool:
    """Whether a text of unknown meaning looks like an address or a part of one."""
    return "@" in text or "://" in text


def is_address(location: Path | str | None) -> TypeGuard[str]:
    """Whether a location is the address of a database, and not the path of a journal file."""
    # An address that lacks a slash counts too: it names no file, and it may hold a password.
    return isinstance(location, str) and re.match(r"[a-z0-9_+]{2,}:|.*://", location) is not None


def parse_address(address: str) -> URL:
    """Parse an address.

    Raises RequestError, which does not repeat any part of the address.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    url = None
    with suppress(ArgumentError, ValueError):
        url = make_url(address)
    if url is None or _may_show_password(url):
        # Neither the address nor SQLAlchemy's error is shown: both may hold a part of a password.
        raise RequestError(
            "The storage's address cannot be parsed.",
            remedy='Write "postgresql://USER@HOST/DATABASE" or "sqlite:///FILE". In a password, '
            'write %40 for "@" and %25 for "%".',
        )
    return url


def _may_show_password(url: URL) -> bool:
    """Whether SQLAlchemy may have taken a part of the password for the host or the database."""
    is_file = url.get_backend_name() == "sqlite"
    return "@" in (url.host or "") or ("@" in (url.database or "") and not is_file)
