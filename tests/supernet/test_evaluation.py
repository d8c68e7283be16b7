import numpy as np
import pytest
import torch

from nas.data import load_dataset
from nas.data.batches import sequential_batches
from nas.errors import DataError, RequestError
from nas.supernet import evaluate
from nas.supernet.evaluation import CALIBRATION_BATCH
from nas.torch_network import Network
from tests.supernet.scrambled_supernet import TINY, scrambled, space_on

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", TINY)
def test_the_score_is_that_of_the_extracted_network(digits, name):
    space = space_on(digits, name)
    supernet = scrambled(space)
    rng = np.random.default_rng(0)
    for architecture in (space.largest, space.sample(rng)):
        graph = architecture.graph
        batches = [x for x, _ in sequential_batches(digits.train, digits, CALIBRATION_BATCH, CPU)]
        network = Network(graph, torch.Generator()).eval()
        network.load_state_dict(supernet.extract(graph, supernet.calibrate(graph, batches)))
        (batch,) = sequential_batches(digits.search, digits, 1000, CPU)
        right = (network(batch[0]).argmax(1) == batch[1]).float().mean().item()
        (score,) = evaluate(supernet, [architecture], digits)
        assert score == pytest.approx(right)
        assert supernet.evaluate(architecture, digits) == pytest.approx(right, abs=0.05)


def test_scores_do_not_depend_on_order(digits):
    space = space_on(digits, "mobilenet_tiny")
    supernet = scrambled(space)
    rng = np.random.default_rng(0)
    architectures = [space.sample(rng) for _ in range(5)]
    together = evaluate(supernet, architectures, digits, "holdout")
    alone = [evaluate(supernet, [a], digits, "holdout")[0] for a in reversed(architectures)]
    assert together == alone[::-1]
    assert all(0 <= score <= 1 for score in together)


def test_the_test_split_is_refused(digits):
    space = space_on(digits, "mobilenet_tiny")
    with pytest.raises(RequestError, match="'test' cannot be used"):
        evaluate(scrambled(space), [space.smallest], digits, "test")


def test_data_of_another_size_is_refused():
    data = load_dataset("digits", image_size=12)
    space = space_on(data, "mobilenet_tiny").adapt(image_size=8, channels=1, classes=10)
    with pytest.raises(DataError, match="12 px"):
        evaluate(scrambled(space), [space.smallest], data)
