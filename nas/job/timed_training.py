"""Trainings at the end of a job, which its budget bounds."""

from __future__ import annotations

import time
from collections.abc import Mapping

from nas.deploy.folder import ModelFolder
from nas.deploy.retrain import Retraining, measure_epoch, train_networks
from nas.display.formatting import format_duration
from nas.errors import NasError
from nas.job import planning
from nas.job.folder import JobRun
from nas.run.trained import MODELS_FOLDER
from nas.space import Architecture
from nas.supernet.probe_choice import FOLDS
from nas.supernet.training import CHECKPOINT_FILE


class TimedTraining:
    """Trains networks of a job one after the other, as far as the budget pays for them.

    The steps of a network are timed before its training begins, and the last training and export
    correct what is expected of the next ones.

    Args:
        run: the run.
        setup: what the networks are trained with; its epochs and its duration are set here.
    """

    def __init__(self, run: JobRun, setup: Retraining) -> None:
        self._run, self._setup = run, setup
        self._epoch_s: dict[str, float] = {}
        self._pace = self._export_pace = 1.0

    def epoch_s(self, networks: Mapping[str, Architecture]) -> float:
        """Return the seconds of an epoch of some networks together."""
        for name in [each for each in networks if each not in self._epoch_s]:
            if not self._epoch_s:
                self._run.progress.begin("epochs of the finalists", "network")
            self._epoch_s[name] = measure_epoch(self._setup, networks[name])
            self._run.progress.advance(len(self._epoch_s), None, name)
        return sum(self._epoch_s[name] for name in networks)

    def whole_epoch_s(self, networks: Mapping[str, Architecture]) -> float:
        """Return these seconds with those that refits and choices between weights add to them."""
        seconds = self.epoch_s(networks)
        if not self._setup.are_shipped:
            return seconds
        validated = {k: each for k, each in networks.items() if self._setup.cross_validates(each)}
        refit = planning.refit_share(self._run.settings, self._run.data)
        # Each of the trainings on parts of the images leaves out one of so many.
        return (1 + refit) * seconds + (FOLDS - 1) * self.epoch_s(validated)

    def export_s(self, networks: Mapping[str, Architecture]) -> float:
        """Return the seconds to export some networks."""
        if not self._setup.are_shipped:
            return 0.0
        settings, data = self._run.settings, self._run.data
        own = [self.epoch_s({name: each}) for name, each in networks.items()]
        return self._export_pace * sum(planning.export_s(settings, data, each) for each in own)

    def train(self, name: str, architecture: Architecture, why: str = "") -> dict[str, NasError]:
        """Train a network, unless its end would lie beyond the budget.

        The first network of a run is trained in any case, and so is one whose training an earlier
        start has begun.

        Args:
            name: name of its folder in `models`.
            architecture: the network.
            why: what to tell the user if its training begins.

        Returns:
            The error by the name if the training failed; nothing else.
        """
        run, networks, setup = self._run, {name: architecture}, self._setup
        decided = run.record.finalists
        assert decided is not None, "the finalists come first"
        setup.epochs = decided.shortened.get(name, decided.epochs)
        setup.longest_seconds = None
        folder = ModelFolder(run.path / MODELS_FOLDER / name)
        folder.restore()  # A trained network must not be one that the budget leaves out.
        is_begun = (folder.path / CHECKPOINT_FILE).is_file()
        if architecture.digest in run.trained or is_begun:
            return train_networks(setup, networks, run.progress)[1]
        whole_s = self.whole_epoch_s(networks)
        left_s = run.left_s - self.export_s(networks)
        possible, is_first = int(left_s / (self._pace * whole_s)), not run.trained
        if not is_first and possible < planning.SHORTEST * setup.epochs:
            beyond_s = self._pace * setup.epochs * whole_s - left_s
            run.progress.note(
                f"{name} is not trained: it would end {format_duration(beyond_s)} after the budget "
                f"of {run.settings.budget}"
            )
            return {}
        if possible < setup.epochs > 1:
            run.progress.note(
                f"{name} gets {max(1, possible)} epochs: with {setup.epochs}, it would end after "
                f"the budget of {run.settings.budget}"
            )
            setup.epochs = max(1, possible)
            if is_first:
                decided.epochs = setup.epochs  # The others have the same recipe.
            else:
                decided.shortened[name] = setup.epochs
            run.save()
        if why:
            run.progress.note(why)
        expected_s = setup.epochs * whole_s
        own_share = self.epoch_s(networks) / whole_s
        setup.longest_seconds = own_share * max(left_s, expected_s)
        start = time.perf_counter()
        _, errors = train_networks(setup, networks, run.progress)
        if not errors:
            self._pace = (time.perf_counter() - start) / expected_s
        return errors

    def learn_export(self, name: str, architecture: Architecture, seconds: float) -> None:
        """Correct what is expected of exports by the seconds that the one of a network took."""
        # An earlier start has trained, and may have exported a network whose steps were not timed.
        planned_s = self.export_s({name: architecture}) if name in self._epoch_s else 0.0
        if planned_s:
            self._export_pace *= seconds / planned_s
