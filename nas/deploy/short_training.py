"""A short training of a candidate, which says more of it than its score, and leaves no weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

from nas.deploy.exits import part_of
from nas.deploy.retrain import Retraining
from nas.run.short_trainings import ShortTraining
from nas.space import Architecture
from nas.supernet.evaluation import evaluate_network
from nas.supernet.standalone import train_network


def train_shortly(setup: Retraining, architecture: Architecture, epochs: float) -> ShortTraining:
    """Train a network from the supernet's weights, and return what it reaches on the search images.

    Args:
        setup: what it is trained with; its length is changed.
        architecture: the network.
        epochs: passes over the training images.
    """
    run, (_, teacher) = setup.run, setup.teacher or (None, None)
    setup.epochs, setup.longest_seconds = epochs, None
    start, recipe = setup.start("", architecture)
    with tempfile.TemporaryDirectory() as folder:
        trained = train_network(
            architecture,
            run.data,
            Path(folder),
            recipe,
            seed=run.settings.seed,
            start=start,
            teacher=teacher,
        )
    accuracy = evaluate_network(part_of(trained.network, architecture.graph), run.data)
    return ShortTraining(
        schema=1,
        digest=architecture.digest,
        epochs=epochs,
        accuracy=run.record.expected(accuracy, architecture),
    )
