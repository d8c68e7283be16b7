import pytest

from tests.benchmarks.samplers import TabularBenchmark
from tests.search.test_study import SPACES, error, macs

SHUFFLENET = SPACES[1]


@pytest.fixture(scope="module")
def benchmark_table():
    values = {each.digest: (error(each), macs(each)) for each in SHUFFLENET.enumerate()}
    return TabularBenchmark([SHUFFLENET], values, names=("error", "macs"))


def test_regret_is_zero_for_the_true_front_and_one_for_the_worst_values(benchmark_table):
    assert benchmark_table.regret(benchmark_table.front) == pytest.approx(0)
    assert benchmark_table.regret(benchmark_table.reference[None]) == 1
