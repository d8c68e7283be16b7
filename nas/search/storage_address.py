"""The address of a search's database: reading it, and showing it without its secrets."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard
from urllib.parse import quote, quote_plus

from nas.errors import RequestError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

HIDDEN = "***"
"""Stands in messages for text that may hold a password."""

# PostgreSQL: https://www.postgresql.org/docs/current/libpq-connect.html
_POSTGRESQL_KEYS = """
    application_name channel_binding client_encoding connect_timeout dbname
    fallback_application_name gssencmode gsslib host hostaddr keepalives keepalives_count
    keepalives_idle keepalives_interval krbsrvname load_balance_hosts options passfile port
    require_auth requirepeer service ssl_max_protocol_version ssl_min_protocol_version sslcert
    sslcertmode sslcompression sslcrl sslcrldir sslkey sslmode sslnegotiation sslrootcert sslsni
    target_session_attrs tcp_user_timeout user
"""

_OTHER_KEYS = """
    cache check_same_thread charset collation immutable isolation_level mode nolock ssl_ca ssl_cert
    ssl_key timeout unix_socket uri vfs
"""

_SHOWN_KEYS = frozenset(_POSTGRESQL_KEYS.split()) | frozenset(_OTHER_KEYS.split())
"""The keys of a query that are known to hold no secret; all others are left out."""


def shown(where: Path | str) -> str:
    """Return a storage's address without its secrets; PGPASSWORD can supply the password.

    Raises RequestError for an address that cannot be read.
    """
    if not is_address(where):
        return str(where)
    address = parse(where)
    secret_keys = [key for key in address.query if key not in _SHOWN_KEYS]
    bare = address.difference_update_query(secret_keys)._replace(password=None)
    return bare.render_as_string(hide_password=False)


def may_hold_password(text: str) -> bool:
    """Whether a text of unknown meaning looks like an address, or a part of one."""
    return "@" in text or "://" in text


def is_address(where: Path | str | None) -> TypeGuard[str]:
    """Whether this is the address of a database rather than the path of a journal."""
    # An address with a slash missing counts: it names no file, and may hold a password.
    return isinstance(where, str) and re.match(r"[a-z0-9_+]{2,}:|.*://", where) is not None


def parse(where: str) -> URL:
    """Read an address. Raises RequestError, without a word of the address."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    address = None
    with suppress(ArgumentError, ValueError):
        address = make_url(where)
    if address is None or _is_misread(address):
        # Neither the address nor SQLAlchemy's error: a part of a password may stand in them.
        raise RequestError(
            "The storage's address cannot be read.",
            remedy='Write "postgresql://USER@HOST/DATABASE" or "sqlite:///FILE"; in a password '
            '"@" is written %40 and "%" %25.',
        )
    return address


def _is_misread(address: URL) -> bool:
    """Whether a part of the address that is shown may hold the password."""
    is_file = address.get_backend_name() == "sqlite"
    return "@" in (address.host or "") or ("@" in (address.database or "") and not is_file)


def without_secrets(text: str, where: Path | str | None) -> str:
    """Return a text, such as a driver's message, with the secrets of an address hidden."""
    if not is_address(where):
        return text
    address = parse(where)
    secrets = [str(address.password)] if address.password else []
    for key, values in address.normalized_query.items():
        if key not in _SHOWN_KEYS:
            secrets += values
    for secret in filter(None, secrets):
        for form in (secret, quote(secret, safe=""), quote_plus(secret), quote(secret)):
            text = text.replace(form, HIDDEN)
    return text
