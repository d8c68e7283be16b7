import pytest

from tests.benchmarks.search_kills import run_test_search, search_with_kills, summary


@pytest.mark.slow
def test_search_that_is_killed_at_random_moments_equals_an_uninterrupted_one(tmp_path):
    uninterrupted = summary(run_test_search(None, 60))
    killed = search_with_kills(tmp_path, trials=60, kills=8, seed=1)
    assert killed.summary == uninterrupted
    assert killed.kills == 8
    trials, _ = uninterrupted
    num_evaluated = sum(state != "infeasible" or "error" in v for _, state, v, _ in trials)
    # Each kill may repeat the evaluation that it interrupted, and no other.
    assert num_evaluated <= killed.evaluations <= len(trials) + killed.kills
