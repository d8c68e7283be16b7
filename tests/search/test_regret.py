import numpy as np
import pytest

from nas.errors import RequestError
from nas.search import Infeasible, hypervolume
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


def test_hypervolume_is_normalised_from_the_best_to_the_worst_values():
    values = {"a": (0.0, 10.0), "b": (4.0, 0.0), "c": (2.0, 5.0), "d": (3.0, 8.0)}
    table = TabularBenchmark(SPACES, values)
    assert table.hypervolume(np.array([[2.0, 5.0]])) == 0.25
    assert table.hypervolume(table.points) == hypervolume([[0.5, 0.5]], (1, 1))
    assert table.regret(np.array([[2.0, 5.0]])) == 0
    assert table.regret(np.array([[3.0, 8.0]])) == pytest.approx(1 - 0.25 * 0.2 / 0.25)


def test_objectives_look_values_up_and_unknown_networks_are_infeasible(benchmark_table):
    known, unknown = SHUFFLENET.smallest, SHUFFLENET.largest
    values = {d: row for d, row in benchmark_table.values.items() if d != unknown.digest}
    table = TabularBenchmark([SHUFFLENET], values, names=("error", "macs"), cheap=("macs",))
    first, second = table.objectives()
    assert (first.cheap, second.cheap) == (False, True)
    assert first.evaluate([known]) == [error(known)]
    assert second.evaluate([known, unknown]) == [macs(known), Infeasible("not in the table")]


def test_objective_with_one_value_is_refused():
    with pytest.raises(RequestError, match="the same value for all"):
        TabularBenchmark([SHUFFLENET], {"a": (1.0, 2.0), "b": (1.0, 3.0)})


@pytest.mark.slow
def test_regret_of_a_search_falls_with_its_evaluations(benchmark_table):
    regrets = hypervolume_regret(benchmark_table, "guided", evaluations=(5, 20, 60), seed=1)
    assert sorted(regrets, reverse=True) == regrets
    assert regrets[0] < 1
    assert 0 <= regrets[-1] < 0.05
