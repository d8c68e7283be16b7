"""A PostgreSQL server for the whole session, and an empty database for a test."""

import os
from collections.abc import Iterator

import pytest

from tests.search.postgresql import Server, binaries, serving


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    found = binaries()
    if found is None:
        if os.environ.get("NAS_REQUIRE_POSTGRESQL") == "1":
            pytest.fail("PostgreSQL is not installed, and NAS_REQUIRE_POSTGRESQL=1 asks for it")
        pytest.skip("PostgreSQL is not installed")
    with serving(found) as server:
        yield server


@pytest.fixture
def database(postgresql) -> str:
    """The address of an empty database, password included."""
    return postgresql.new_database()
