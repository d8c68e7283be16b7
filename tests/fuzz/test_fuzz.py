"""Damages files of every kind, a few times each; `tests/benchmarks/fuzz.py` does so for hours."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.corpus import make_corpus
from tests.fuzz.targets import Target, run, targets, try_target

pytestmark = pytest.mark.slow

FAST_EXAMPLES = 12
SLOW_EXAMPLES = 2

NAMES = [
    "table, predict",
    "table, show",
    "table, diff",
    "table, merge",
    "architecture, predict",
    "run, report",
    "run, predict",
    "trials, select",
    "trials, report",
    "trials, predict",
    "ranking, report",
    "training log, report",
    "history, report",
    "weights, evaluate",
    "job of a run, evaluate",
    "space of a run, evaluate",
    "space, spaces",
    "image, train",
    "parquet, train",
    "measurements, run",
    "journal, search",
    "job, run",
]


@pytest.fixture(scope="session")
def corpus(finished_job, tmp_path_factory) -> tuple[Path, dict[str, Target]]:
    folder = tmp_path_factory.mktemp("corpus")
    digest = make_corpus(finished_job, folder)
    return folder, {target.name: target for target in targets(folder, digest)}


def test_names_are_those_of_all_targets(corpus):
    assert list(corpus[1]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_whole_file_is_read(corpus, name):
    """A command that refuses every file would pass all checks of damaged files."""
    folder, by_name = corpus
    target = by_name[name]
    outcome = try_target(target, folder, (folder / target.file).read_bytes())
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("name", NAMES)
def test_damaged_file_is_read_correctly_or_named(corpus, name):
    folder, by_name = corpus
    target = by_name[name]
    whole = (folder / target.file).read_bytes()

    @settings(
        max_examples=SLOW_EXAMPLES if target.is_slow else FAST_EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        try_target(target, folder, data.draw(target.damage(whole)))

    check()


def test_traceback_is_caught(corpus, monkeypatch):
    """A fuzz test that cannot fail would find nothing."""
    folder, by_name = corpus
    target = by_name["trials, select"]

    def broken(*_):
        raise KeyError("front")

    monkeypatch.setattr("nas.run.selection.select", broken)
    with pytest.raises(AssertionError, match="a traceback"):
        try_target(target, folder, (folder / "run/trials.csv").read_bytes())
    monkeypatch.undo()
    assert run(folder, ("select", "run"))[0] == 0, "the folder is whole again"
