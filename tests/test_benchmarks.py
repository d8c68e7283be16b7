"""The benchmarks take too long for tests, but each can be started, and says how."""

import importlib
from pathlib import Path

import pytest

NAMES = [
    path.stem
    for path in sorted(Path(__file__).parent.glob("benchmarks/*.py"))
    if path.stem != "__init__"
]


@pytest.mark.parametrize("name", NAMES)
def test_benchmark_can_be_imported_and_names_its_command(name):
    module = importlib.import_module(f"tests.benchmarks.{name}")
    assert f"python -m tests.benchmarks.{name}" in module.__doc__
