import numpy as np
import pytest

from nas.graph import Graph
from tests.space.small_spaces import SMALL


@pytest.mark.parametrize("name", SMALL)
def test_counts_of_block_graphs_add_up_to_those_of_the_ops(name):
    """The counts of a composite graph equal those of a graph with the same ops."""
    space = SMALL[name]()
    rng = np.random.default_rng(3)
    for _ in range(30):
        graph = space.sample(rng).graph
        whole = Graph(graph.ops)
        assert graph == whole
        for key in ("digest", "macs", "params", "peak_memory_bytes", "input_shape", "text"):
            assert getattr(graph, key) == getattr(whole, key), key
