"""A whole job for a board builds its table and measures its front on the board."""

from __future__ import annotations

from pathlib import Path

import pytest

from nas.run import candidates
from tests.job.test_devices import run_on


@pytest.mark.long
@pytest.mark.timeout(900)
def test_job_measures_its_front_on_the_board(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = run_on(tmp_path, f'target = "{server}"')
    rows = candidates.read(out / "trials.csv")
    assert rows["measured_us"].notna().sum() == 3
