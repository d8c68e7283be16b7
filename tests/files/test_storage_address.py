import traceback
from pathlib import Path

import pytest

from nas.errors import RequestError
from nas.files.storage_address import is_address, may_hold_password, redact, redact_address
from nas.search.storage import Storage

SECRET = "open-sesame"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (f"postgresql://nas:{SECRET}@host:5433/trials", "postgresql://nas@host:5433/trials"),
        (
            f"postgresql+psycopg://nas:{SECRET}@/t?host=/run",
            "postgresql+psycopg://nas@/t?host=%2Frun",
        ),
        (f"postgresql://nas@h/t?password={SECRET}&sslpassword={SECRET}", "postgresql://nas@h/t"),
        (f"postgres://nas:{SECRET}%40:/?#[]@h/t", "postgres://nas@h/t"),
        *(
            (
                f"postgresql://nas@h/t?{key}={SECRET}&sslmode=require",
                "postgresql://nas@h/t?sslmode=require",
            )
            for key in ("passwd", "pwd", "pass", "PASSWORD", "secret", "token", "api_key")
        ),
        ("postgresql://h/t?sslkey=c.pem", "postgresql://h/t?sslkey=c.pem"),
        ("postgresql://nas@host/trials", "postgresql://nas@host/trials"),
        ("sqlite:///folder/study.db", "sqlite:///folder/study.db"),
        ("results/run/study.journal", "results/run/study.journal"),
        (Path("C:/study.journal"), "C:/study.journal"),
    ],
)
def test_redact_address_removes_secrets(address, expected):
    assert redact_address(address) == expected


@pytest.mark.parametrize(
    "address",
    [
        "://",
        f"postgresql://nas:{SECRET}",
        f"postgresql://nas:@{SECRET}@host/trials",
        f"postgresql://nas:x@{SECRET}@host/trials",
        f"postgresql:/nas:{SECRET}@host/trials",
        f"postgresql:nas:{SECRET}@host/trials",
        f"postgresql://host:{SECRET}/trials",
        f"nothing://nas:{SECRET}@host/trials",
        f"https://nas:{SECRET}@host/trials",
        f"postgresql:///nas:{SECRET}@host/trials",
        f"POSTGRESQL://nas:{SECRET}@host/trials",
        f"sqlite://nas:{SECRET}@host/trials",
        "sqlite:///x.db?timeout=soon",
        f"redis://nas:{SECRET}@host/trials",
    ],
)
def test_invalid_address_is_refused_without_its_password(address):
    with pytest.raises(RequestError) as raised:
        Storage(address)
    assert SECRET not in full_text(raised.value)
    assert raised.value.remedy


def full_text(error):
    """Return all that can be seen of an error, as with --debug."""
    return "".join(traceback.format_exception(error)).replace(Path(__file__).read_text(), "")


@pytest.mark.parametrize("form", ["p@ss/word", "p%40ss%2Fword", "p%40ss/word"])
def test_redact_hides_every_form_of_a_password(form):
    address = "postgresql://nas:p%40ss%2Fword@host/trials"
    assert redact(f"cannot use {form}, nor {form}", address) == "cannot use ***, nor ***"
    assert redact(f"cannot use {form}", "study.journal") == f"cannot use {form}"


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("postgresql://nas@host/trials", True),
        ("postgresql:/nas@host/trials", True),
        ("results/study.journal", False),
        ("C:/study.journal", False),
        (Path("postgresql:/x"), False),
        (None, False),
    ],
)
def test_is_address_tells_databases_from_files(location, expected):
    assert is_address(location) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("nas:x@host", True), ("x://y", True), ("study.journal", False)]
)
def test_may_hold_password_recognises_parts_of_addresses(text, expected):
    assert may_hold_password(text) == expected
