"""`nas search`: the search of a job by itself, and workers that join it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import Json, Out, command_line, job_key, show
from nas.errors import RequestError

if TYPE_CHECKING:
    from nas.job import JobSettings


def search(
    job: Annotated[
        str,
        typer.Argument(metavar="JOB", help="A job file (TOML), one that ships, or a run folder."),
    ],
    out: Out = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Join the search that is running for a run folder.")
    ] = False,
    trials: Annotated[int | None, job_key("search.trials")] = None,
    minutes: Annotated[float | None, job_key("search.minutes")] = None,
    stall: Annotated[int | None, job_key("search.stall")] = None,
    sampler: Annotated[str | None, job_key("search.sampler")] = None,
    workers: Annotated[int | None, job_key("search.workers")] = None,
    storage: Annotated[str | None, job_key("search.storage")] = None,
    max_latency_ms: Annotated[float | None, job_key("search.max_latency_ms")] = None,
    as_json: Json = False,
) -> None:
    """The search of a job: what it needs is made first, the front is not timed.

    Options stand above the job file's. Ctrl-C ends after the trial in flight, a second one at once;
    the same command goes on, and `nas run` on the same folder finishes the job. A password of the
    storage may stand in PGPASSWORD.

    \b
    Example: nas search overnight.toml --minutes 60
    Example: nas search results/overnight --trials 4000 --workers 4
    Example: nas search overnight.toml --storage postgresql://nas@host/nas
    Example: nas search results/overnight --worker --storage postgresql://nas@host/nas
    """
    from nas.console import ProgressBars
    from nas.job import search_job
    from nas.job.folder import saved_space_files

    folder = Path(job)
    options = {
        "trials": trials,
        "minutes": minutes,
        "stall": stall,
        "sampler": sampler,
        "workers": workers,
        "storage": storage,
        "max_latency_ms": max_latency_ms,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if worker:
        _join(folder, given, out, as_json)
        return
    settings, kept = _settings(job, given)
    folder = out or kept or Path("results") / settings.name
    with ProgressBars() as bars:
        result = search_job(
            settings,
            folder,
            command=command_line(),
            progress=bars,
            # A run goes on with its own spaces, wherever the command is given.
            space_files=saved_space_files(kept) if kept else None,
        )
    done = sum(trial.state == "complete" for trial in result.trials)
    show(
        {
            "run": str(folder),
            "trials": done,
            "front": len(result.front),
            "ended": result.stop_reason,
        },
        f"{done} architectures, {len(result.front)} on the predicted front ({result.stop_reason}): "
        f"{folder / 'report.html'}\nTo time them: nas run {folder / 'job.toml'} --out {folder}",
        as_json,
    )


def _join(folder: Path, given: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from nas.job.workers import end_with_main

    # Before the imports that take seconds.
    end_with_main()
    from nas.console import ProgressBars
    from nas.job.searching import join_search

    others = [name for name in (*given, *(["out"] if out else [])) if name != "storage"]
    if others:
        raise RequestError(
            f"A worker searches as its run does: --worker and --{others[0].replace('_', '-')} do "
            "not go together.",
            remedy="Give it to the `nas search` that the worker joins.",
        )
    with ProgressBars() as bars:
        trials = join_search(folder, given.get("storage"), bars)
    show({"run": str(folder), "trials": trials}, f"The search is over: {trials} trials.", as_json)


def _settings(job: str, options: dict[str, Any]) -> tuple[JobSettings, Path | None]:
    """The job with the options, and the run folder if that is what was named."""
    from nas.job import job_path, load_job
    from nas.job.folder import saved_settings
    from nas.job.settings import with_search

    folder = Path(job)
    kept = saved_settings(folder)
    if kept is not None:
        return with_search(kept, options), folder
    return with_search(load_job(job_path(job)), options), None
