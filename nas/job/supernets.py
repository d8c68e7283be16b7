"""The supernets of a run without the rest of the job: their training and their ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nas import files
from nas.deploy.networks import load_supernet
from nas.errors import KernelError, RequestError, RunFolderError, TableError
from nas.files.documents import to_json
from nas.job.folder import JobRun, claim, installed_versions, saved_settings
from nas.job.inputs import (
    check_networks,
    load_images,
    load_job_spaces,
    load_published,
    require_complete,
)
from nas.job.planning import ANCHOR_EPOCHS
from nas.job.stages import decide_training, open_data, train_supernet, train_supernets
from nas.run.progress import JobProgress, SilentProgress
from nas.run.record import RUN
from nas.run.run import Run
from nas.run.settings import JobSettings
from nas.space import Architecture
from nas.supernet.correction import fit_correction
from nas.supernet.distributed import current_process_group, require_single_process
from nas.supernet.ground_truth import (
    Judges,
    compare_with_standalone,
    draw_matched,
    standalone_recipe,
)
from nas.supernet.ranking import compute_pooled_ranking, compute_ranking
from nas.supernet.ranking_records import (
    RANKING_SCHEMA,
    RankedNetworkRecord,
    RankingRecord,
    read_ranking,
)
from nas.supernet.recipe import Recipe
from nas.supernet.records import MIN_ANCHORS, ScoreCorrection
from nas.supernet.weights import Supernet

RANKING = "ranking.json"
ANCHORS = "anchors.json"
"""Names of the files with networks of a run that were trained alone, in the run folder: what
supernets are worth, by the hold-out, and what the search reads, by its own images."""


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
    group = current_process_group()
    earlier = group.broadcast(saved_settings(folder) if group.is_main else None)
    if settings.training.length is None:
        length = None if earlier is None else earlier.training.length
        if length is None:
            length = {"minutes": settings.budget_s / 60 / len(settings.space)}
        training = settings.training.model_copy(update=length)
        settings = settings.model_copy(update={"training": training})
    check_networks(settings)
    if not group.is_main:
        recipe, image_size = group.broadcast(None)
        data = load_images(settings, SilentProgress(), image_size=image_size)
        _, spaces, published = load_job_spaces(settings, data)
        return {
            name: train_supernet(
                settings,
                space,
                data,
                Run(folder).supernet_folder(name),
                recipe,
                published.get(name),
            )
            for name, space in spaces.items()
        }
    with claim(folder, settings, command, progress) as run:
        open_data(run, needs_device=False)
        decide_training(run)
        recipe, _ = group.broadcast((run.recipe(), run.data.image_size))
        trained = train_supernets(run, recipe)
        run.save()
        return trained


def fit_score_correction(run: Run) -> ScoreCorrection | None:
    """Return the correction of scores with which the search of a run begins.

    It is fitted to the anchors, which the job or `rank_supernets` trained before the search, if
    there are any. The result is None if the job leaves the scores as they are, or a supernet is not
    trained.
    """
    supernets = run.record.supernets
    if not run.settings.search.correct_scores or not supernets.keys() >= run.spaces.keys():
        return None
    ends = {
        name: [
            (space.smallest.macs, supernets[name].smallest_accuracy),
            (space.largest.macs, supernets[name].largest_accuracy),
        ]
        for name, space in run.spaces.items()
    }
    return fit_correction(ends, _anchors(run))


def _anchors(run: Run) -> dict[str, tuple[RankedNetworkRecord, ...]]:
    """Return the networks of each space that were trained alone, judged on images of the search.

    The result is empty if a space has too few.
    """
    anchors = read_ranking(run.path, ANCHORS)
    ranked = {} if anchors is None else anchors.spaces
    networks = {space: ranked[space].networks for space in run.spaces if space in ranked}
    if all(len(networks.get(space, ())) >= MIN_ANCHORS for space in run.spaces):
        return networks
    return {}


def rank_supernets(
    run: Run,
    *,
    spaces: Sequence[str] = (),
    nets: int = 50,
    repeated: int = 20,
    epochs: int | None = None,
    seed: int = 0,
    command: str = "",
    progress: JobProgress | None = None,
) -> RankingRecord:
    """Compare a run's supernets with networks of the same spaces that are trained alone.

    They start from random weights, or from the published ones that their supernet started from.
    The networks are equally fast within each of five budgets by the latency table of the run, or
    have equal MACs if it has no table. Networks that were trained before with the same recipe are
    not trained again. The result is also written to `ranking.json` in the run folder. Before the
    search, enough networks of all spaces are its anchors, too: `anchors.json` has them, judged on
    images of the search. See `nas.supernet.ranking_records` for the statistics.

    Args:
        run: the run.
        spaces: names of some of the run's spaces; by default all.
        nets: number of networks of each space.
        repeated: number of networks of each space that are trained twice.
        epochs: number of epochs of standalone training; by default that of the supernet.
        seed: seed of the draw and of standalone training.
        command: command that the file names as what made it.
        progress: receives stages, progress and messages.

    Raises:
        RequestError: the run has no such space.
        RunFolderError: the folder is in use, or a supernet is missing.
        CheckpointError: a supernet is damaged.
        TrainingError: standalone training failed.
        WeightsError: the file of published weights is missing or damaged.
    """
    require_single_process("a ranking")
    for name in spaces:
        if name not in run.spaces:
            raise RequestError(
                f"{run.path} has no space {name!r}.", remedy=f"It has: {', '.join(run.spaces)}."
            )
    with run.locked("Wait until it ends, and rank then."):
        names: dict[Judges, str] = {"holdout": RANKING}
        is_of_all = nets >= MIN_ANCHORS and run.spaces.keys() <= set(spaces or run.spaces)
        if run.record.study is None and is_of_all:
            names["search"] = ANCHORS
        rankings = _rank(
            run,
            progress or SilentProgress(),
            spaces or list(run.spaces),
            names,
            nets=nets,
            repeated=repeated,
            epochs=epochs,
            seed=seed,
            command=command,
        )
        return rankings["holdout"]


def train_anchors(run: JobRun) -> None:
    """Train networks of each space standalone, for `fit_score_correction`.

    Nothing is done if enough were trained before, as anchors or by `rank_supernets`.

    Args:
        run: the run, with trained supernets.

    Raises:
        TrainingError: standalone training failed.
    """
    if not _anchors(run):
        _rank(
            run,
            run.progress,
            list(run.spaces),
            {"search": ANCHORS},
            nets=run.settings.anchors,
            seed=run.settings.seed,
            length=ANCHOR_EPOCHS,
            command=run.record.command,
        )


def _rank(
    run: Run,
    progress: JobProgress,
    spaces: Sequence[str],
    names: Mapping[Judges, str],
    *,
    nets: int,
    seed: int,
    repeated: int = 0,
    epochs: int | None = None,
    length: float = 1.0,
    command: str = "",
) -> dict[Judges, RankingRecord]:
    """Write and return rankings of supernets; see `rank_supernets` for the other arguments.

    Args:
        names: name of the file that is written, by the split that judges the standalone trainings.
        length: epochs of standalone training over those of the supernet, unless `epochs` is given.
    """
    judged: dict[Judges, dict[str, list[RankedNetworkRecord]]] = {part: {} for part in names}
    recipes: dict[str, Recipe] = {}
    latency_us = _predictions(run, progress)
    published = load_published(run.settings, run.spaces)
    for name in spaces:
        supernet = load_supernet(run, name)
        trained = run.record.supernets.get(name)
        if trained is None:
            raise RUN.failure(f"{run.path / 'run.json'} has no supernet {name} yet")
        recipes[name] = run.recipe(epochs or length * trained.epochs)
        if name in published:
            recipes[name] = run.settings.training.fine_tuned(recipes[name], len(run.data.train))
        drawn = draw_matched(supernet.space, nets, latency_us or _macs, seed=seed)
        progress.begin(f"{name} standalone", "step")
        ranked = compare_with_standalone(
            supernet,
            drawn,
            run.data,
            run.path,
            recipes[name],
            seed=seed,
            repeated=repeated,
            published=published.get(name),
            progress=progress.advance,
        )
        latencies = [latency_us(each) if latency_us else None for each in drawn]
        for part, networks in judged.items():
            networks[name] = [
                network.model_copy(update={"latency_us": latency})
                for network, latency in zip(ranked[part], latencies, strict=True)
            ]
    rankings = {}
    for part, networks in judged.items():
        images = {"source": run.data.source, "digest": run.data.digest, **run.data.counts}
        document = {
            "schema": RANKING_SCHEMA,
            "command": command,
            "versions": installed_versions(),
            "data": {**images, "judges": part},
            "seed": seed,
            "recipes": {
                name: standalone_recipe(recipe, published.get(name))
                for name, recipe in recipes.items()
            },
            "spaces": {name: compute_ranking(own) for name, own in networks.items()},
            "pooled": compute_pooled_ranking([each for own in networks.values() for each in own])
            if len(networks) > 1
            else None,
        }
        rankings[part] = RankingRecord.model_validate(document)
        files.replace(run.path / names[part], to_json(rankings[part]))
    return rankings


def _predictions(run: Run, progress: JobProgress) -> Callable[[Architecture], float | None] | None:
    """Return what predicts latencies in microseconds, and None for a network with a failed kernel.

    Returns None without the latency table of the run.
    """
    batch = run.settings.device.batch
    try:
        table = run.table
        require_complete(table, run.spaces.values(), batch)
    except (RunFolderError, TableError) as error:
        progress.note(f"{error.message} Networks are matched by their MACs.")
        return None

    def latency_us(architecture: Architecture) -> float | None:
        try:
            return table.predict(architecture, batch).latency_us
        except KernelError:
            return None

    return latency_us


def _macs(architecture: Architecture) -> float:
    return float(architecture.macs)
