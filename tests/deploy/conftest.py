"""A network that was trained on digits for a few seconds, and files that run in this process."""

import threading

import pytest

from nas.deploy import export, model_process
from nas.deploy.card import ModelOrigin
from nas.deploy.model import TrainedModel, preprocessing_of
from nas.deploy.model_process import ModelProcess
from nas.run.model_card import ModelData
from nas.space import load_space
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import train_standalone

VALIDATION_FRACTION = 0.5
"""That of the fixture `digits`."""


def train(digits, seed: int) -> TrainedModel:
    space = load_space("mobilenet_tiny", image_size=8, channels=1, classes=10)
    architecture = space.sample(seed=3)
    settings = Recipe(epochs=12, learning_rate=0.2)
    network = train_standalone(architecture.graph, digits, settings, seed=seed)
    return TrainedModel(architecture, network, preprocessing_of(digits))


@pytest.fixture(scope="session")
def trained(digits) -> TrainedModel:
    return train(digits, seed=0)


@pytest.fixture(scope="session")
def trained_again(digits) -> TrainedModel:
    """Return the same architecture with other weights."""
    return train(digits, seed=1)


@pytest.fixture(scope="session")
def origin(digits) -> ModelOrigin:
    return ModelOrigin(
        id="jf2a",
        data=ModelData(
            source="digits",
            digest=digits.digest,
            license="CC BY 4.0",
            judging_digest="0123",
            class_counts=digits.part_class_counts,
            validation_fraction=VALIDATION_FRACTION,
            seed=0,
        ),
        recipe={"epochs": 12},
        image_changes="training images are shifted by up to 1 pixel and not mirrored (as they are)",
        latencies_us={"predicted": 12.5},
        search_device="a processor",
    )


@pytest.fixture
def in_process(monkeypatch) -> None:
    """Let this process run exported files, which is faster than processes of their own."""
    running: dict[ModelProcess, object] = {}
    lock = threading.Lock()

    monkeypatch.setattr(export, "cores_of_processes", lambda *_: [None])  # They stay this one's.

    def call(process, function, *arguments, **limits):
        with lock:
            model_process._running = running.get(process)
            result = function(*arguments)
            running[process] = model_process._running
            return result

    monkeypatch.setattr(ModelProcess, "_call", call)
