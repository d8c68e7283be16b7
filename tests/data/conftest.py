from pathlib import Path

import pytest


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    """Use an empty cache for decoded images; return the folder that is XDG_CACHE_HOME."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"
