"""Damages files of every kind, a few times each; `NAS_FUZZ_ROUNDS=120` does so for an hour."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.corpus import make_corpus
from tests.fuzz.targets import TARGETS, Target, run, try_target

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("NAS_FUZZ_ROUNDS", "1"))
FAST_EXAMPLES = 6 * ROUNDS
SLOW_EXAMPLES = 2 * ROUNDS


@pytest.fixture(scope="session")
def corpus(finished_job, tmp_path_factory) -> tuple[Path, dict[str, Target]]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, {target.name: target for target in make_corpus(finished_job, folder)}


@pytest.mark.parametrize("name", [target.name for target in TARGETS])
def test_damaged_file_is_read_correctly_or_named(corpus, name):
    folder, by_name = corpus
    target = by_name[name]
    whole = (folder / target.file).read_bytes()
    # A command that refuses every file would pass all checks of damaged files.
    outcome = try_target(target, folder, whole)
    assert outcome.status == 0, outcome.err

    @settings(
        max_examples=SLOW_EXAMPLES if target.is_slow else FAST_EXAMPLES,
        deadline=None,
        derandomize=ROUNDS == 1,
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

    def broken(**_):
        raise KeyError("front")

    monkeypatch.setattr("nas.run.selection.selection_rule", broken)
    with pytest.raises(AssertionError, match="a traceback"):
        try_target(target, folder, (folder / "run/trials.csv").read_bytes())
    monkeypatch.undo()
    assert run(folder, ("select", "run"))[0] == 0, "the folder is whole again"
