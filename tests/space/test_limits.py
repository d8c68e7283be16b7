import math
import re

import numpy as np
import pytest
from scipy.stats import chisquare

from nas.errors import InfeasibleError, RequestError
from nas.space import load_definition
from nas.space.limits import Limit, sample_within
from tests.space.small_spaces import SMALL


def macs(space):
    return sorted(a.macs for a in space.enumerate())


def test_all_architectures_within_a_limit_are_equally_likely():
    space, rng = SMALL["plain"](), np.random.default_rng(0)
    bound = macs(space)[space.size // 2]
    within = [a for a in space.enumerate() if a.macs <= bound]
    position = {a: i for i, a in enumerate(within)}
    limits = [Limit("macs", largest=bound)]
    drawn = [position[sample_within(space, rng, limits)] for _ in range(20 * len(within))]
    assert chisquare(np.bincount(drawn, minlength=len(within))).pvalue > 1e-4


@pytest.mark.parametrize(("rank", "side"), [(0, "largest"), (-1, "smallest")])
def test_sample_within_finds_the_only_architecture_that_meets_a_limit(rank, side):
    """One network in 10^13 has the fewest MACs; uniform draws would never meet it."""
    space = load_definition("mobilenet")
    end = space.smallest if rank == 0 else space.largest
    limit = Limit("macs", **{side: end.macs})
    architecture = sample_within(space, np.random.default_rng(1), [limit])
    assert architecture.macs == end.macs


def test_a_limit_outside_the_range_of_a_count_names_the_nearest():
    space = load_definition("squeezenet")
    least = space.smallest.macs
    nearest = re.escape(f"nearest has macs {least:.6g}")
    with pytest.raises(InfeasibleError, match=rf"macs of at most .* {nearest}"):
        sample_within(space, np.random.default_rng(0), [Limit("macs", largest=least / 2)])
    most = space.extreme("params", "largest").params
    with pytest.raises(InfeasibleError, match="params of at least"):
        sample_within(space, np.random.default_rng(0), [Limit("params", smallest=most + 1)])


def test_limits_that_exclude_each_other_name_the_nearest():
    space, rng = SMALL["plain"](), np.random.default_rng(0)
    counts = macs(space)
    limits = [Limit("macs", smallest=counts[-1]), Limit("params", largest=700)]
    with pytest.raises(InfeasibleError, match=r"macs of at least .* in 100 attempts.*nearest has"):
        sample_within(space, rng, limits, attempts=100)


@pytest.mark.parametrize(
    ("smallest", "largest"),
    [
        (None, math.nan),
        (-math.inf, None),
        (-1.5, 3),
        (None, "3"),
        (None, True),
        (4, 3),
        (None, None),
    ],
)
def test_an_invalid_bound_is_refused(smallest, largest):
    words = re.escape(f"macs is {smallest!r} to {largest!r}")
    with pytest.raises(RequestError, match=words):
        Limit("macs", smallest, largest)


def test_only_counts_have_limits():
    with pytest.raises(RequestError, match="no limit on 'latency_us'. Limit one of macs, params"):
        Limit("latency_us", largest=1)
