"""Puts this folder on the import path, for `networks` and `fake_runtime`."""

import pytest


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is arithmetic need not be given time to change."""
    monkeypatch.setattr("nas.latency.networks.SECONDS_APART", 0.0)
