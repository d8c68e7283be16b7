"""A run to report on: the committed example, before its finalists were trained."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nas.report import candidates

EXAMPLE = Path(__file__).parents[2] / "results" / "example"


@pytest.fixture
def untrained_run(tmp_path: Path) -> Path:
    """Return a copy of the run without trained models and without corrected accuracies."""
    ignored = shutil.ignore_patterns("models", "*.safetensors", "study.journal", "standalone.jsonl")
    run = shutil.copytree(EXAMPLE, tmp_path / "run", ignore=ignored)
    rows = candidates.read(run / "trials.csv")
    rows[["trained_accuracy", "test_accuracy", "corrected_accuracy", "dispatch_share"]] = None
    candidates.write(rows, run / "trials.csv")
    return run
