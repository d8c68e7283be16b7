"""The networks and chains of the benchmark of early exits."""

import numpy as np
import pytest
import torch

from nas.space import load_space
from nas.torch_network import to_torch
from tests.benchmarks.early_exits import (
    EXITS,
    Answers,
    Stage,
    choose,
    network,
    run_chain,
    with_exit,
)


@pytest.mark.parametrize("stage", EXITS)
def test_a_network_with_an_exit_computes_what_its_parts_compute(stage):
    large = network(load_space("mobilenet_32", image_size=24), "large")
    parts = with_exit(large, stage)
    whole = to_torch(parts.whole, seed=1).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.normal_(std=0.3)
    images = torch.randn(4, 3, 24, 24)
    early, last = whole(images).chunk(2, 1)
    for graph, expected in ((parts.prefix, early), (large.graph, last)):
        part = to_torch(graph).eval()
        own = part.tensors()
        part.load_state_dict({name: t for name, t in whole.tensors().items() if name in own})
        torch.testing.assert_close(part(images), expected)
    assert parts.prefix.macs + parts.rest.macs == parts.whole.macs


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
