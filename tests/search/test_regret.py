import pytest

from tests.benchmarks.samplers import TabularBenchmark, hypervolume_regret
from tests.search.test_study import SPACES, error, macs

SHUFFLENET = SPACES[1]


@pytest.fixture(scope="module")
def benchmark_table():
    values = {each.digest: (error(each), macs(each)) for each in SHUFFLENET.enumerate()}
    return TabularBenchmark([SHUFFLENET], values, names=("error", "macs"))


def test_regret_is_zero_for_the_true_front_and_one_for_the_worst_values(benchmark_table):
    assert benchmark_table.regret(benchmark_table.front) == pytest.approx(0)
    assert benchmark_table.regret(benchmark_table.reference[None]) == 1


@pytest.mark.slow
def test_regret_of_a_search_falls_with_its_evaluations(benchmark_table):
    regrets = hypervolume_regret(benchmark_table, "guided", evaluations=(5, 20, 60), seed=1)
    assert sorted(regrets, reverse=True) == regrets
    assert regrets[0] < 1
    assert 0 <= regrets[-1] < 0.05
