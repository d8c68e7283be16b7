"""The networks and chains of the benchmark of early exits."""

import numpy as np

from tests.benchmarks.early_exits import (
    Answers,
    Stage,
    choose,
    run_chain,
)


def test_the_best_threshold_within_a_mean_latency_is_chosen():
    first = Answers(np.array([0.9, 0.8, 0.4, 0.3]), np.array([True, True, False, False]))
    second = Answers(np.ones(4), np.array([True, False, True, True]))
    chain = (Stage(10.0, first, first), Stage(20.0, second, second))
    # The second network answers the last two images: 10 + 20 / 2 microseconds.
    name, threshold = choose({"chain": chain}, 20.0)
    latency_us, right = run_chain(chain, "judging", threshold)
    assert (name, latency_us, right.all()) == ("chain", 20.0, True)
    # With less time it answers the last one only.
    _, threshold = choose({"chain": chain}, 15.0)
    assert run_chain(chain, "judging", threshold)[1].tolist() == [True, True, False, True]
    assert choose({"chain": chain}, 9.0) is None
