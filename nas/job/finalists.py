"""The finalists of a job: networks of its front, which are trained to the end and exported."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pandas as pd

from nas.deploy.exporting import export_networks, job_formats
from nas.deploy.requests import ExportRequest
from nas.deploy.retrain import Retraining, finalist
from nas.errors import IncompleteExportError, NasError
from nas.job import planning
from nas.job.finish import networks_to_measure
from nas.job.folder import JobRun
from nas.job.halving import halve_candidates
from nas.job.references import affordable, published_networks, untrained
from nas.job.timed_training import TimedTraining
from nas.run.candidates import of_table
from nas.run.front import representatives, without_second_dtypes
from nas.run.record import FinalistsRecord
from nas.run.selection import Option, Selection, knee, member_options
from nas.space import Architecture


def ship_finalists(
    run: JobRun,
) -> tuple[list[str], dict[str, NasError], dict[str, NasError]]:
    """Train networks of the front of a run to the end, and export each before the next is trained.

    The first is the pick by the scores. Another one is trained at the end if training has made it
    the pick. Those whose end would lie beyond the budget are left out, see `TimedTraining`; the run
    has at least one trained and exported network, whatever the budget.

    Args:
        run: the run, with the candidates and their measured latencies.

    Returns:
        The names of the folders of the trained ones in `models`, the pick first; the error of each
        network that could not be trained, by its name; and of each that could not be exported in
        all formats. The run's record has the reasons, too. Nothing if the job has no finalists.
    """
    chosen: dict[str, Architecture] = {}
    untrained: dict[str, NasError] = {}
    unexported: dict[str, NasError] = {}
    if run.settings.finish.retrain == 0:
        return [], {}, {}
    run.record.training_errors, run.record.export_errors = {}, {}
    probed = {name: each for name, each in run.published.items() if each.origin is None}
    setup = Retraining(run, probed=probed)
    training = TimedTraining(run, setup)

    def ship(name: str, architecture: Architecture, why: str = "") -> None:
        chosen[name] = architecture
        is_new = architecture.digest not in run.trained
        with run.stage(planning.FINALISTS, ends=False):
            untrained.update(training.train(name, architecture, why))
        if architecture.digest in run.trained:
            with run.stage(planning.EXPORT, ends=False):
                start = time.perf_counter()
                unexported.update(export_finalists(run, [name]))
                if is_new and name not in unexported:  # Others may take no time at all.
                    training.learn_export(name, architecture, time.perf_counter() - start)

    with run.stage(planning.FINALISTS, ends=False):
        if run.record.finalists is None and run.measured_us and not run.front.empty:
            pick = Selection(_options(run, by_scores=True), run.images).choose().member
            epoch_s = training.epoch_s(dict([finalist(run, pick.digest)]))
            halve_candidates(run, setup, pick, epoch_s)
        finalists = _finalists(run, _decide_finalists(run, training).count)
    for name, architecture in finalists.items():
        ship(name, architecture)
    names = list(finalists)
    if finalists:
        picked = Selection(_options(run), run.images, run.models).choose()
        name, architecture = finalist(run, picked.member.digest)
        names.insert(0, name)
        if name not in finalists:
            why = f"{name} is trained, too: after these trainings, nas select picks it"
            ship(name, architecture, "" if picked.is_trained else why)
    run.record.training_errors = {name: error.message for name, error in untrained.items()}
    run.end_stages(planning.EXPORT)
    trained = [name for name in dict.fromkeys(names) if chosen[name].digest in run.trained]
    return trained, untrained, unexported


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


def _decide_finalists(run: JobRun, training: TimedTraining) -> FinalistsRecord:
    """Decide and record how many finalists are trained, and for how many epochs.

    All get as many epochs, with which their training and export fill what is left of the budget,
    but no more than the job sets. Published networks get as many, and take their part of the time.
    What an earlier start decided stays, unless the budget has changed.
    """
    settings, known = run.settings, run.record.finalists
    fewest = planning.fewest_finalists(settings)
    limit_s = planning.finalists_s(settings, run.left_s)

    def epochs_of(count: int, published_s: float) -> float:
        networks = _finalists(run, count)
        own_s = training.whole_epoch_s(networks) + published_s
        return (limit_s - training.export_s(networks)) / max(1e-9, own_s)

    def choose_references(epochs: Callable[[float], int]) -> list[str] | None:
        if settings.finish.references is not None:
            return None
        return affordable(run, training.epoch_s, epochs)

    if known is not None and known.budget == settings.budget:
        if settings.finish.retrain is not None:
            known.count = settings.finish.retrain
        if known.references is None:
            known.references = choose_references(lambda _: known.epochs)
        return known
    most = planning.most_epochs(settings, run.data)
    chosen = choose_references(
        lambda published_s: planning.allowed_epochs(most, epochs_of(fewest, published_s))
    )
    networks, _ = published_networks(run, settings.finish.references or chosen or ())
    published_s = training.epoch_s(untrained(run, networks))
    count, epochs = planning.decide_finalists(
        settings, most, lambda count: epochs_of(count, published_s)
    )
    decided = FinalistsRecord(budget=settings.budget, count=count, epochs=epochs, references=chosen)
    run.record.finalists = decided
    run.save()
    beside = f"; so do the published networks {', '.join(networks)}" if networks else ""
    run.progress.note(
        f"{1 - run.left_s / settings.budget_s:.0%} of {settings.budget} are spent: finalists are "
        f"{count} networks of the front, and get {decided.epochs} epochs each{beside}"
    )
    return decided


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
    messages = {
        name: {format_: own.message for format_, own in error.failed.items()}
        if isinstance(error, IncompleteExportError)
        else {"all": error.message}
        for name, error in errors.items()
    }
    run.record.export_errors = {**run.record.export_errors, **messages}
    return errors
