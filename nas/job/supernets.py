"""The supernets of a run by themselves: trained without the rest of a job, and put to the proof."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from nas import files
from nas.errors import RequestError, RunFolderError
from nas.job.context import Job
from nas.job.folder import RunPaths, claim, kept_settings, kept_spaces, versions
from nas.job.progress import Unwatched, Watch
from nas.job.settings import JobSettings
from nas.job.stages import open_data, train_supernets
from nas.records import RUN, SCHEMA, RankingRecord, to_json
from nas.supernet import Supernet, TrainingSettings, measure_step, train
from nas.supernet.distributed import current_process_group, require_single_process
from nas.supernet.ground_truth import DrawMethod, compare_with_standalone, draw_architectures
from nas.supernet.ranking import RankedNetwork, compute_pooled_ranking, compute_ranking

RANKING = "ranking.json"


def train_only(
    settings: JobSettings, folder: Path, *, command: str = "", watch: Watch | None = None
) -> dict[str, Supernet]:
    """Trains the supernets of a job and nothing else; `nas run` on the same folder goes on.

    Where the job does not say how many epochs, its budget is shared by the supernets alone. Of the
    processes that `torchrun` started, the first one alone writes to the folder.

    Args:
        settings: of the job.
        folder: made if missing; an interrupted training in it continues.
        command: stands in the run as what made it.
        watch: is told what happens.

    Raises RunFolderError for a folder in use or of another job, and what the training raises.
    """
    watch = watch or Unwatched()
    together = current_process_group()
    kept = together.broadcast(kept_settings(folder) if together.is_main else None)
    if settings.training.epochs is None and kept is not None:
        settings = _with_epochs(settings, kept.training.epochs)
    job = Job(settings, watch)
    if settings.training.epochs is None:
        job.settings = settings = _with_epochs(settings, _epochs_within_budget(job))
    epochs = settings.training.epochs
    assert epochs is not None
    if not together.is_main:
        return {
            name: train(
                space,
                job.data,
                RunPaths(folder).supernet(name),
                job.training(epochs),
                seed=settings.seed,
            )
            for name, space in job.spaces.items()
        }
    with claim(folder, settings, command) as run:
        open_data(job, run)
        trained = train_supernets(job, run, dict.fromkeys(job.spaces, epochs))
        run.save()
        return trained


def opened(folder: Path, watch: Watch | None = None) -> Job:
    """The job of a run folder, with the spaces that it keeps.

    Raises RunFolderError for a folder that is no run, or one that has only begun.
    """
    settings = kept_settings(folder)
    if settings is None:
        raise RunFolderError(
            f"{folder} is not a run: it has no job.toml.",
            remedy="Give the folder that `nas run` or `nas supernet train` wrote.",
        )
    space_files = kept_spaces(folder)
    if space_files is None:
        raise RunFolderError(
            f"The job in {folder} has only begun: its data and spaces were not read yet.",
            remedy="Wait until they are, or run it again.",
        )
    return Job(settings, watch or Unwatched(), space_files)


def supernet_of(job: Job, folder: Path, space: str) -> Supernet:
    """The trained supernet of a space. Raises RequestError for a space that the run lacks."""
    if space not in job.spaces:
        raise RequestError(
            f"{folder} has no space {space!r}.", remedy=f"It has: {', '.join(job.spaces)}."
        )
    return Supernet.load(RunPaths(folder).supernet(space), job.spaces[space])


def rank_supernets(
    folder: Path,
    *,
    spaces: Sequence[str] = (),
    nets: int = 20,
    how: DrawMethod = "spread",
    epochs: int | None = None,
    seed: int = 0,
    command: str = "",
    watch: Watch | None = None,
) -> RankingRecord:
    """Holds a run's supernets against networks trained alone; see `nas.supernet.ranking.Ranking`.

    Networks that were trained alone before, with the same recipe, are not trained again.

    Args:
        folder: of the run; `ranking.json` in it has what is returned.
        spaces: some of the run's; all by default.
        nets: networks a space.
        how: they are drawn.
        epochs: of training alone; by default the supernet's.
        seed: of the draw and of training alone.
        command: stands in the file as what made it.
        watch: is told what happens.

    Raises RunFolderError, CheckpointError for a supernet that is not there, TrainingError.
    """
    require_single_process("a ranking")
    watch = watch or Unwatched()
    job = opened(folder, watch)
    found: dict[str, list[RankedNetwork]] = {}
    recipes: dict[str, TrainingSettings] = {}
    with claim(folder, job.settings, command) as run:
        for name in spaces or list(job.spaces):
            supernet = supernet_of(job, folder, name)
            trained = run.record.supernets.get(name)
            if trained is None:
                raise RUN.failure(f"{folder / 'run.json'} has no supernet {name} yet")
            recipes[name] = job.training(epochs or trained.epochs)
            drawn = draw_architectures(supernet.space, nets, seed=seed, method=how)
            watch.begin(f"{name} alone", "step")
            found[name] = compare_with_standalone(
                supernet, drawn, job.data, folder, recipes[name], seed=seed, progress=watch.advance
            )
        document = {
            "schema": SCHEMA,
            "command": command,
            "versions": versions(),
            "data": {"source": job.data.source, "digest": job.data.digest, **job.data.counts},
            "draw": {"how": how, "seed": seed},
            "recipes": {name: recipe.identity() for name, recipe in recipes.items()},
            "spaces": {
                name: {**compute_ranking(own).to_json(), "networks": [asdict(each) for each in own]}
                for name, own in found.items()
            },
            "pooled": compute_pooled_ranking(
                [each for own in found.values() for each in own]
            ).to_json()
            if len(found) > 1
            else None,
        }
        ranking = RankingRecord.model_validate_json(json.dumps(document))
        files.replace(folder / RANKING, to_json(ranking))
    return ranking


def _with_epochs(settings: JobSettings, epochs: int | None) -> JobSettings:
    training = settings.training.model_copy(update={"epochs": epochs})
    return settings.model_copy(update={"training": training})


def _epochs_within_budget(job: Job) -> int:
    """The same number for all spaces, so that no family is trained longer than another."""
    epoch_s = 0.0
    for space in job.spaces.values():
        step = measure_step(space, job.data, job.training())
        epoch_s += step.seconds * step.steps_per_epoch
    return max(1, int(job.settings.budget_s / epoch_s))
