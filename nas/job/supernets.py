"""The supernets of a run without the rest of the job: their training and their ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nas import files
from nas.documents import SCHEMA, to_json
from nas.errors import KernelError, RequestError, RunFolderError, TableError
from nas.job.context import JobContext
from nas.job.folder import (
    RunFolder,
    RunPaths,
    claim,
    installed_versions,
    saved_settings,
    saved_space_files,
)
from nas.job.objectives import require_complete
from nas.job.progress import JobProgress, SilentProgress
from nas.job.settings import JobSettings
from nas.job.stages import decide_image_changes, open_data, train_supernets
from nas.run.record import RUN, RunRecord, TableSummary, read_run
from nas.space import Architecture
from nas.supernet.correction import fit_correction
from nas.supernet.distributed import current_process_group, require_single_process
from nas.supernet.ground_truth import (
    DrawMethod,
    compare_with_standalone,
    draw_architectures,
    draw_matched,
)
from nas.supernet.ranking import compute_pooled_ranking, compute_ranking
from nas.supernet.ranking_records import RankedNetworkRecord, RankingRecord, read_ranking
from nas.supernet.records import MIN_ANCHORS, ScoreCorrection
from nas.supernet.settings import TrainingSettings
from nas.supernet.training import train
from nas.supernet.weights import Supernet

RANKING = "ranking.json"


def train_job_supernets(
    settings: JobSettings, folder: Path, *, command: str = "", progress: JobProgress | None = None
) -> dict[str, Supernet]:
    """Train the supernets of a job and nothing else. `run_job` on the same folder continues.

    If the job file does not set the length of the training, the supernets share the whole budget.
    Only the first of the processes that `torchrun` started writes to the folder.

    Args:
        settings: the settings of the job.
        folder: the run folder; it is made if missing, and an interrupted training continues.
        command: command that the run names as what made it.
        progress: receives stages, progress and messages.

    Returns:
        The trained supernets by space.

    Raises:
        RunFolderError: the folder is in use, or belongs to another job.
        TrainingError: the training failed.
    """
    progress = progress or SilentProgress()
    group = current_process_group()
    earlier = group.broadcast(saved_settings(folder) if group.is_main else None)
    if settings.training.length is None:
        length = None if earlier is None else earlier.training.length
        if length is None:
            length = {"minutes": settings.budget_s / 60 / len(settings.space)}
        training = settings.training.model_copy(update=length)
        settings = settings.model_copy(update={"training": training})
    job = JobContext(settings, progress)
    if not group.is_main:
        job.flip = group.broadcast(None)
        return {
            name: train(
                space,
                job.data,
                RunPaths(folder).supernet(name),
                job.training_settings(),
                seed=settings.seed,
            )
            for name, space in job.spaces.items()
        }
    with claim(folder, settings, command) as run:
        open_data(job, run)
        decide_image_changes(job, run)
        group.broadcast(job.flip)
        trained = train_supernets(job, run, dict.fromkeys(job.spaces, job.training_settings()))
        run.save()
        return trained


def open_job(folder: Path, progress: JobProgress | None = None) -> JobContext:
    """Return the job of a run folder, with the run's own copies of its spaces.

    Raises:
        RunFolderError: the folder is no run folder, or its job has not read its data yet.
    """
    settings = saved_settings(folder)
    if settings is None:
        raise RunFolderError(
            f"{folder} is not a run: it has no job.toml.",
            remedy="Give the folder that `nas run` or `nas supernet train` wrote.",
        )
    space_files = saved_space_files(folder)
    if space_files is None:
        raise RunFolderError(
            f"The job in {folder} has only begun: its data and spaces were not read yet.",
            remedy="Wait until they are, or run it again.",
        )
    changes = read_run(folder).image_changes
    flip = None if changes is None else changes.flip_by_experiment
    return JobContext(settings, progress or SilentProgress(), space_files, flip)


def load_supernet(job: JobContext, folder: Path, space: str) -> Supernet:
    """Return the trained supernet of a space.

    Raises:
        RequestError: the run has no such space.
        CheckpointError: the supernet is missing or damaged.
    """
    if space not in job.spaces:
        raise RequestError(
            f"{folder} has no space {space!r}.", remedy=f"It has: {', '.join(job.spaces)}."
        )
    return Supernet.load(RunPaths(folder).supernet(space), job.spaces[space])


def fit_score_correction(
    job: JobContext, folder: Path, record: RunRecord
) -> ScoreCorrection | None:
    """Return the correction of scores with which the search of a run begins.

    It is fitted to the networks that `rank_supernets` trained, if it was called before.

    Args:
        job: the job of the run.
        folder: the run folder.
        record: the record of the run.

    Returns:
        The correction; None if the job leaves the scores as they are, or a supernet is not trained.
    """
    supernets = record.supernets
    if not job.settings.search.correct_scores or not supernets.keys() >= job.spaces.keys():
        return None
    ends = {
        name: [
            (space.smallest.macs, supernets[name].smallest_accuracy),
            (space.largest.macs, supernets[name].largest_accuracy),
        ]
        for name, space in job.spaces.items()
    }
    ranking = read_ranking(folder)
    ranked = {} if ranking is None else ranking.spaces
    return fit_correction(ends, {name: space.networks for name, space in ranked.items()})


def rank_supernets(
    folder: Path,
    *,
    spaces: Sequence[str] = (),
    nets: int = 50,
    how: DrawMethod = "matched",
    repeated: int = 20,
    epochs: int | None = None,
    seed: int = 0,
    command: str = "",
    progress: JobProgress | None = None,
) -> RankingRecord:
    """Compare a run's supernets with networks of the same spaces that are trained alone.

    Networks that were trained before with the same recipe are not trained again. The result is also
    written to `ranking.json` in the run folder. See `nas.supernet.ranking` for the figures.

    Args:
        folder: the run folder.
        spaces: names of some of the run's spaces; by default all.
        nets: number of networks of each space.
        how: method by which the networks are drawn. "matched" ones are equally fast by the latency
            table of the run, or have equal MACs if it has no table.
        repeated: number of networks of each space that are trained twice.
        epochs: number of epochs of standalone training; by default that of the supernet.
        seed: seed of the draw and of standalone training.
        command: command that the file names as what made it.
        progress: receives stages, progress and messages.

    Raises:
        RunFolderError: the folder is no run folder, or is in use.
        CheckpointError: a supernet is missing or damaged.
        TrainingError: standalone training failed.
    """
    require_single_process("a ranking")
    progress = progress or SilentProgress()
    job = open_job(folder, progress)
    with claim(folder, job.settings, command) as run:
        return _rank(
            job,
            run,
            spaces or list(job.spaces),
            nets=nets,
            how=how,
            repeated=repeated,
            epochs=epochs,
            seed=seed,
            command=command,
        )


def train_anchors(job: JobContext, run: RunFolder) -> None:
    """Train `search.anchors` networks of each space standalone, for `fit_score_correction`.

    Nothing is done if `rank_supernets` compared enough networks before.

    Args:
        job: the job.
        run: the run folder, with trained supernets.

    Raises:
        TrainingError: standalone training failed.
    """
    ranking = read_ranking(run.path)
    ranked = {} if ranking is None else ranking.spaces
    counts = [len(ranked[name].networks) if name in ranked else 0 for name in job.spaces]
    if min(counts) < MIN_ANCHORS:
        anchors = job.settings.search.anchors
        command, seed = run.record.command, job.settings.seed
        _rank(job, run, list(job.spaces), nets=anchors, seed=seed, command=command)


def _rank(
    job: JobContext,
    run: RunFolder,
    spaces: Sequence[str],
    *,
    nets: int,
    seed: int,
    how: DrawMethod = "matched",
    repeated: int = 0,
    epochs: int | None = None,
    command: str = "",
) -> RankingRecord:
    """Write and return the ranking of supernets; see `rank_supernets` for the arguments."""
    networks: dict[str, list[RankedNetworkRecord]] = {}
    recipes: dict[str, TrainingSettings] = {}
    latency_us = _predictions(job, run.record.table)
    for name in spaces:
        supernet = load_supernet(job, run.path, name)
        trained = run.record.supernets.get(name)
        if trained is None:
            raise RUN.failure(f"{run.path / 'run.json'} has no supernet {name} yet")
        recipes[name] = job.training_settings(epochs or trained.epochs)
        budgets: list[int | None]
        if how == "matched":
            cost = latency_us or _macs
            pairs = draw_matched(supernet.space, nets, cost, seed=seed)
            drawn, budgets = [each for _, each in pairs], [budget for budget, _ in pairs]
        else:
            drawn = draw_architectures(supernet.space, nets, seed=seed, method=how)
            budgets = [None] * len(drawn)
        job.progress.begin(f"{name} standalone", "step")
        ranked = compare_with_standalone(
            supernet,
            drawn,
            job.data,
            run.path,
            recipes[name],
            seed=seed,
            repeated=repeated,
            progress=job.progress.advance,
        )
        networks[name] = [
            network.model_copy(
                update={"budget": budget, "latency_us": latency_us(each) if latency_us else None}
            )
            for network, budget, each in zip(ranked, budgets, drawn, strict=True)
        ]
    document = {
        "schema": SCHEMA,
        "command": command,
        "versions": installed_versions(),
        "data": {"source": job.data.source, "digest": job.data.digest, **job.data.counts},
        "draw": {"how": how, "seed": seed},
        "recipes": {name: recipe.identity() for name, recipe in recipes.items()},
        "spaces": {name: compute_ranking(own) for name, own in networks.items()},
        "pooled": compute_pooled_ranking([each for own in networks.values() for each in own])
        if len(networks) > 1
        else None,
    }
    ranking = RankingRecord.model_validate(document)
    files.replace(run.path / RANKING, to_json(ranking))
    return ranking


def _predictions(
    job: JobContext, summary: TableSummary | None
) -> Callable[[Architecture], float | None] | None:
    """Return what predicts latencies in microseconds, and None for a network with a failed kernel.

    Returns None without the latency table of the run.
    """
    reason = "The run has no latency table."
    table = None
    if summary is not None:
        try:
            opened = job.open_table(summary.file)
            require_complete(job, opened)
            opened.use_calibration(summary.calibration, job.batch)
            table = opened
        except TableError as error:
            reason = error.message
    if table is None:
        job.progress.note(f"{reason} Networks are matched by their MACs.")
        return None

    def latency_us(architecture: Architecture) -> float | None:
        try:
            return table.predict(architecture, job.batch).latency_us
        except KernelError:
            return None

    return latency_us


def _macs(architecture: Architecture) -> float:
    return float(architecture.macs)
