import pytest

from tests.benchmarks.search_kills import (
    problems_of,
    run_test_search,
    search_with_kills,
    summary,
)


@pytest.mark.slow
def test_search_that_is_killed_at_random_rounds_equals_an_uninterrupted_one(tmp_path):
    uninterrupted = summary(run_test_search(None, 60))
    location = tmp_path / "study.journal"
    killed = search_with_kills(location, trials=60, kills=8, seed=1)
    assert summary(run_test_search(location, 60)) == uninterrupted
    assert (killed.kills, killed.failed) == (8, 0)
    # Each kill may repeat the evaluation that it interrupted, and no other.
    assert killed.repeated <= killed.kills


@pytest.mark.slow
def test_killed_workers_lose_and_duplicate_nothing(tmp_path):
    location = tmp_path / "study.journal"
    killed = search_with_kills(
        location, trials=40, kills=6, seed=1, workers=3, sampler="random", seconds=0.03
    )
    assert problems_of(location, trials=40, workers=3) == []
    assert (killed.kills, killed.failed) == (6, 0)
