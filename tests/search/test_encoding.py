import numpy as np
import pytest

from nas.search.encoding import ArchitectureEncoder
from nas.space import load_space
from tests.search.test_study import SPACES

MOBILENET_V3_SMALL = load_space("mobilenet_v3_small", image_size=32)
ALL_SPACES = [*SPACES, MOBILENET_V3_SMALL]


def encoded_distance(encoder, a, b):
    """Return the distance of two architectures by their bits and the weights of these."""
    bits = encoder.encode([a, b]).bits
    return float(encoder.bit_weights @ np.abs(bits[0] - bits[1]))


def choice_distance(space, a, b):
    """Add up the distances of the choices that both architectures have.

    Two categories have distance 1, two numbers the share of the way between the extremes.
    """
    first, second = dict(a.choices), dict(b.choices)
    distance = 0.0
    for key in first.keys() & second.keys():
        options = space.parameters[key]
        if isinstance(options[0], str):
            distance += first[key] != second[key]
        else:
            ranks = sorted(options)
            steps = ranks.index(first[key]) - ranks.index(second[key])
            distance += abs(steps) / (len(options) - 1)
    return distance


def sample(space, count, seed=0):
    rng = np.random.default_rng(seed)
    return [space.sample(rng, uniform_over="choices") for _ in range(count)]


def keys(architecture):
    return dict(architecture.choices).keys()


by_space = pytest.mark.parametrize("space", ALL_SPACES, ids=lambda space: space.name)


@by_space
def test_distance_is_the_sum_over_the_choices(space):
    encoder = ArchitectureEncoder([space])
    architectures = sample(space, 40)
    # Only architectures of the same depths have the same choices.
    pairs = [(a, b) for a in architectures for b in architectures if keys(a) == keys(b)]
    assert sum(a != b for a, b in pairs) > 10
    for a, b in pairs:
        assert encoded_distance(encoder, a, b) == pytest.approx(choice_distance(space, a, b))


@by_space
def test_sums_over_layers_are_linear_in_the_op_counts(space):
    """A latency is such a sum, over kernels."""
    rng = np.random.default_rng(0)
    layer_latencies = {}

    def latency(graph):
        total = 0.0
        for op in graph.ops:
            if op.kind in ("conv", "linear"):
                layer = (op.kind, graph.input_channels(op), *op[2:7])
                total += layer_latencies.setdefault(layer, rng.random())
        return total

    architectures = sample(space, 300)
    op_counts = ArchitectureEncoder(ALL_SPACES).encode(architectures).op_counts
    latencies = np.array([latency(each.graph) for each in architectures])
    layers = [
        sum(each.graph.counts()[kind] for kind in ("conv", "linear")) for each in architectures
    ]
    assert op_counts.sum(axis=1) == pytest.approx(layers)
    fitted, *_ = np.linalg.lstsq(op_counts, latencies)
    # The fit is not exact, because layers that share a bucket are taken for one.
    assert np.corrcoef(op_counts @ fitted, latencies)[0, 1] > 0.995
