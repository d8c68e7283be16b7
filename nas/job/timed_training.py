"""Trainings at the end of a job, which its budget bounds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping

from nas.deploy.folder import ModelFolder
from nas.deploy.refit import REFIT_FOLDER
from nas.deploy.retrain import Retraining, measure_network_epoch, train_networks
from nas.display.formatting import format_duration
from nas.errors import CheckpointError, NasError
from nas.job import planning
from nas.job.folder import JobRun
from nas.run.trained import MODELS_FOLDER
from nas.space import Architecture
from nas.supernet import checkpoint
from nas.supernet.engine import CHECKPOINT_FILE


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
        self._asked: set[str] = set()

    def epoch_s(self, networks: Mapping[str, Architecture]) -> float:
        """Return the seconds of an epoch of some networks together."""
        for name in [each for each in networks if each not in self._epoch_s]:
            if not self._epoch_s:
                self._run.progress.begin("epochs of the finalists", "network")
            self._epoch_s[name] = measure_network_epoch(self._setup, networks[name])
            self._run.progress.advance(len(self._epoch_s), None, name)
        return sum(self._epoch_s[name] for name in networks)

    def whole_epoch_s(self, networks: Mapping[str, Architecture]) -> float:
        """Return these seconds with those that refits add to them."""
        refit = planning.refit_share(self._run.settings, self._run.data)
        return (1 + refit * self._setup.are_shipped) * self.epoch_s(networks)

    def export_s(self, networks: Mapping[str, Architecture]) -> float:
        """Return the seconds to export some networks."""
        if not self._setup.are_shipped:
            return 0.0
        settings, data = self._run.settings, self._run.data
        own = [self.epoch_s({name: each}) for name, each in networks.items()]
        return self._export_pace * sum(planning.export_s(settings, data, each) for each in own)

    def train(self, name: str, architecture: Architecture, why: str = "") -> dict[str, NasError]:
        """Train a network, unless its end would lie beyond the budget.

        The first network to ship is trained in any case, and so is one whose training an earlier
        start has begun with as many epochs.

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
        self._asked.add(architecture.digest)
        folder = run.path / MODELS_FOLDER / name
        # A killed export may have moved a trained network away: the budget must not leave it out.
        ModelFolder(folder).restore()
        begun = self._begun_epochs(name)
        if architecture.digest in run.trained or begun == setup.epochs:
            return train_networks(setup, networks, run.progress)[1]
        whole_s = self.whole_epoch_s(networks)
        left_s = run.left_s - self.export_s(networks)
        possible = int(left_s / (self._pace * whole_s))
        is_first = setup.are_shipped and not self._asked & run.trained.keys()
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
            if not run.trained:
                decided.epochs = setup.epochs  # The others have the same recipe.
            else:
                decided.shortened[name] = setup.epochs
            run.save()
        if why:
            run.progress.note(why)
        if begun is not None:
            run.progress.note(f"{name} is trained anew: it was begun with {begun:g} epochs")
            (folder / CHECKPOINT_FILE).unlink()
            shutil.rmtree(folder / REFIT_FOLDER, ignore_errors=True)
        own_s = self.epoch_s(networks)
        longest_s = max(left_s, setup.epochs * whole_s) if is_first else left_s
        setup.longest_seconds = own_s / whole_s * longest_s
        start = time.perf_counter()
        records, errors = train_networks(setup, networks, run.progress)
        for record in records:
            # A linear probe has no refit; a training that took too long ended with fewer epochs.
            refit = planning.refit_share(run.settings, run.data) if record.is_probe else 0.0
            self._pace = (time.perf_counter() - start) / (record.epochs * (whole_s - refit * own_s))
        return errors

    def _begun_epochs(self, name: str) -> float | None:
        """Return the epochs of a training that an earlier start has begun; None without one."""
        path = self._run.path / MODELS_FOLDER / name / CHECKPOINT_FILE
        if not path.is_file():
            return None
        try:
            _, record = checkpoint.read(path)
        except CheckpointError:
            return self._setup.epochs  # Its training says what is wrong.
        epochs = (record.training or {}).get("epochs")
        return epochs if isinstance(epochs, int | float) else self._setup.epochs

    def learn_export(self, name: str, architecture: Architecture, seconds: float) -> None:
        """Correct what is expected of exports by the seconds that the one of a network took."""
        # An earlier start has trained, and may have exported a network whose steps were not timed.
        planned_s = self.export_s({name: architecture}) if name in self._epoch_s else 0.0
        if planned_s:
            self._export_pace *= seconds / planned_s
