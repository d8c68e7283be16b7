"""The finalists of a job: networks of its front, which are trained to the end and exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd

from nas.deploy.exporting import export_networks, job_formats
from nas.deploy.requests import ExportRequest
from nas.deploy.retrain import Retraining, finalist, measure_epoch, train_networks
from nas.errors import IncompleteExportError, NasError
from nas.job import planning
from nas.job.finish import networks_to_measure
from nas.job.folder import JobRun
from nas.job.references import affordable, published_networks, untrained
from nas.run.candidates import of_table
from nas.run.front import representatives, without_second_dtypes
from nas.run.record import FinalistsRecord
from nas.run.selection import Option, Selection, knee, member_options
from nas.space import Architecture
from nas.supernet.probe_choice import FOLDS


def train_finalists(run: JobRun) -> tuple[list[str], dict[str, NasError]]:
    """Train networks of the front of a run to the end: what `nas select` picks, and others.

    The first is the pick by the scores. Another one is trained at the end if training has made it
    the pick.

    Args:
        run: the run, with the candidates and their measured latencies.

    Returns:
        The names of their folders in `models`, the pick first; and the error of each network that
        could not be trained, by its name. The run's record has the reasons, too.
    """
    decided = _decide_finalists(run)
    chosen = _finalists(run, decided.count)
    if not chosen:
        run.record.training_errors = {}
        return [], {}
    setup = _retraining(run, decided.epochs)
    _, errors = train_networks(setup, chosen, run.progress)
    picked = Selection(_options(run), run.images, run.models).choose()
    name, architecture = finalist(run, picked.member.digest)
    if name not in chosen:
        chosen[name] = architecture
        if not picked.is_trained:
            run.progress.note(f"{name} is trained, too: after these trainings, nas select picks it")
            _, own = train_networks(setup, {name: architecture}, run.progress)
            errors |= own
    run.record.training_errors = {each: error.message for each, error in errors.items()}
    return sorted(chosen.keys() - errors.keys(), key=[name, *chosen].index), errors


def _retraining(run: JobRun, epochs: int) -> Retraining:
    """Return what finalists of a job are trained with, for so many epochs."""
    probed = {name: each for name, each in run.published.items() if each.origin is None}
    return Retraining(run, epochs, probed=probed)


def _finalists(run: JobRun, count: int) -> dict[str, Architecture]:
    """Return so many networks of the front by folder.

    They are the pick, the published networks whose weights supernets start from, the knee, and
    representatives.

    Pick and knee are those of the scores, so that a job that was interrupted chooses them again.
    """
    rows = _front(run)
    if rows.empty:
        return {}
    options = _options(run, by_scores=True)
    wanted = [Selection(options, run.images).choose(), knee(options)]
    digests = [each.member.digest for each in wanted if each is not None]
    on_front = set(rows["digest"])
    digests[1:1] = [digest for digest in run.published_networks if digest in on_front]
    digests += representatives(rows, run.objectives, count, run.trained)
    return dict(finalist(run, digest) for digest in list(dict.fromkeys(digests))[:count])


def _front(run: JobRun) -> pd.DataFrame:
    """Return the front of a run from which finalists are chosen.

    If it has a network in two dtypes, only the faster one is returned. While a device has not timed
    its kit, only networks of the kit are returned: no others will be on the front.
    """
    rows = run.front
    if run.record.waiting is not None:
        return rows[rows["digest"].isin(networks_to_measure(run, run.trials))]
    return rows if len(run.settings.device.dtypes) == 1 else without_second_dtypes(rows)


def _options(run: JobRun, *, by_scores: bool = False) -> list[Option]:
    """Return the members of the front as options of `nas select`.

    Args:
        run: the run.
        by_scores: whether they are compared as if none was trained.
    """
    members, device = of_table(_front(run)), run.settings.device
    if by_scores:
        scored = [each.model_copy(update={"trained_accuracy": None}) for each in members]
        return member_options(scored, (), device)
    return member_options(members, run.models, device)


def _decide_finalists(run: JobRun) -> FinalistsRecord:
    """Decide and record how many finalists are trained, and for how many epochs.

    All get as many epochs, with which their training and export fill what is left of the budget,
    but no more than the job sets. Published networks get as many, and take their part of the time.
    What an earlier start decided stays, unless the budget has changed.
    """
    settings, known = run.settings, run.record.finalists
    fewest = planning.fewest_finalists(settings)
    limit_s, times = run.seconds_for(planning.FINALISTS), _EpochTimes(run)

    def epochs_of(count: int, published_s: float) -> float:
        networks = _finalists(run, count)
        own = times.of(networks)
        export_s = sum(planning.export_s(settings, run.data, epoch_s) for epoch_s in own)
        own_s = sum(own) + sum(times.of_validation(networks))
        return (limit_s - export_s) / max(1e-9, own_s + published_s)

    def choose_references(epochs: Callable[[float], int]) -> list[str] | None:
        if settings.finish.references is not None:
            return None
        return affordable(run, lambda networks: sum(times.of(networks)), epochs)

    if known is not None and known.budget == settings.budget:
        if settings.finish.retrain is not None:
            known.count = settings.finish.retrain
        if known.references is None:
            known.references = choose_references(lambda _: known.epochs)
        return known
    chosen = choose_references(
        lambda published_s: planning.allowed_epochs(settings, epochs_of(fewest, published_s))
    )
    networks, _ = published_networks(run, settings.finish.references or chosen or ())
    published_s = sum(times.of(untrained(run, networks)))
    count, epochs = planning.decide_finalists(settings, lambda count: epochs_of(count, published_s))
    decided = FinalistsRecord(budget=settings.budget, count=count, epochs=epochs, references=chosen)
    run.record.finalists = decided
    run.save()
    spent_s = run.seconds_before(planning.FINALISTS)
    beside = f"; so do the published networks {', '.join(networks)}" if networks else ""
    run.progress.note(
        f"{spent_s / 60:.1f} min of {settings.budget} are spent: finalists are {count} networks of "
        f"the front, and get {decided.epochs} epochs each{beside}"
    )
    return decided


class _EpochTimes:
    """The seconds that an epoch of networks takes, each measured once.

    Args:
        run: the run.
    """

    def __init__(self, run: JobRun) -> None:
        self._setup = _retraining(run, epochs=1)
        self._progress = run.progress
        self._seconds: dict[str, float] = {}

    def of(self, networks: Mapping[str, Architecture]) -> list[float]:
        """Return the seconds of an epoch of each network."""
        for name in [each for each in networks if each not in self._seconds]:
            if not self._seconds:
                self._progress.begin("epochs of the finalists", "network")
            self._seconds[name] = measure_epoch(self._setup, networks[name])
            self._progress.advance(len(self._seconds), None, name)
        return [self._seconds[name] for name in networks]

    def of_validation(self, networks: Mapping[str, Architecture]) -> list[float]:
        """Return the seconds by which a choice between weights prolongs an epoch of networks."""
        own = {name: each for name, each in networks.items() if self._setup.cross_validates(each)}
        # Each of the trainings leaves out one of so many parts of the images.
        return [(FOLDS - 1) * epoch_s for epoch_s in self.of(own)]


def export_finalists(run: JobRun, finalists: Sequence[str]) -> dict[str, NasError]:
    """Export the finalists of a job in the formats of `[finish] export`.

    Args:
        run: the run, with the trained finalists.
        finalists: names of their folders in `models`.

    Returns:
        The error of each finalist that could not be exported in all formats, by its name. The run's
        record has the reasons by format; under "all" if none was written.
    """
    request = ExportRequest(job_formats(run.settings))
    errors = export_networks(run, finalists, request, run.progress, in_job=True)
    run.record.export_errors = {
        name: {format_: own.message for format_, own in error.failed.items()}
        if isinstance(error, IncompleteExportError)
        else {"all": error.message}
        for name, error in errors.items()
    }
    return errors
