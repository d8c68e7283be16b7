from tests.benchmarks.search_kills import killed_and_continued, outcome, searched


def test_a_search_that_is_killed_at_random_moments_ends_like_the_undisturbed_one(tmp_path):
    calm = outcome(searched(None, 60))
    found, calls, kills = killed_and_continued(tmp_path, trials=60, kills=8, seed=1)
    assert found == calm
    assert kills == 8
    evaluated = sum(state != "infeasible" or "error" in v for _, state, v, _ in calm[0])
    # Each kill may cost the evaluation in flight, and no other.
    assert evaluated <= calls <= len(calm[0]) + kills
