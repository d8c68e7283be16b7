"""`nas search`: run a job up to its search, or join a running search as a worker."""

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
        typer.Argument(
            metavar="JOB", help="Job file (TOML), name of a packaged job, or run folder."
        ),
    ],
    out: Out = None,
    worker: Annotated[
        bool, typer.Option("--worker", help="Join the running search of a run folder.")
    ] = False,
    trials: Annotated[int | None, job_key("search.trials")] = None,
    minutes: Annotated[float | None, job_key("search.minutes")] = None,
    stall: Annotated[str | None, job_key("search.stall")] = None,
    sampler: Annotated[str | None, job_key("search.sampler")] = None,
    workers: Annotated[int | None, job_key("search.workers")] = None,
    storage: Annotated[str | None, job_key("search.storage")] = None,
    max_latency_ms: Annotated[float | None, job_key("search.max_latency_ms")] = None,
    as_json: Json = False,
) -> None:
    """Run a job up to the end of its search.

    The front is not timed on the device. Missing latencies and supernets are made first. Options
    override the job file. Ctrl-C stops the search after the current trial, and a second Ctrl-C
    stops it at once. Repeat the command to continue. `nas run` on the same folder finishes the job.
    The variable PGPASSWORD may hold the password of the storage.

    \b
    Example: nas search overnight.toml --minutes 60
    Example: nas search results/overnight --trials 4000 --workers 4
    Example: nas search overnight.toml --storage postgresql://nas@host/nas
    Example: nas search results/overnight --worker --storage postgresql://nas@host/nas
    """
    from nas.console import ProgressBars
    from nas.job import search_job

    folder = Path(job)
    options = {
        "trials": trials,
        "minutes": minutes,
        "stall": int(stall) if stall is not None and stall.isdecimal() else stall,
        "sampler": sampler,
        "workers": workers,
        "storage": storage,
        "max_latency_ms": max_latency_ms,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if worker:
        _join_search(folder, given, out, as_json)
        return
    settings, continued_run = _load_settings(job, given)
    folder = out or continued_run or Path("results") / settings.name
    with ProgressBars() as bars:
        result = search_job(
            settings,
            folder,
            command=command_line(),
            progress=bars,
            # A continued run uses its own copies of the spaces, in any working directory.
            own_spaces=continued_run is not None,
        )
    completed = sum(trial.state == "complete" for trial in result.trials)
    show(
        {
            "run": str(folder),
            "trials": completed,
            "front": len(result.front),
            "ended": result.stop_reason,
        },
        f"{completed} architectures, {len(result.front)} on the predicted front "
        f"({result.stop_reason}): {folder / 'report.html'}\n"
        f"To time the front: nas run {folder / 'job.toml'} --out {folder}",
        as_json,
    )


def _join_search(folder: Path, given: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from nas.job.workers import end_with_main

    # The main process may end during the following imports, which take seconds.
    end_with_main()
    from nas.console import ProgressBars
    from nas.job.searching import join_search
    from nas.run.run import open_run

    others = [name for name in (*given, *(["out"] if out else [])) if name != "storage"]
    if others:
        raise RequestError(
            f"--worker and --{others[0].replace('_', '-')} do not go together: a worker takes the "
            "settings of the run.",
            remedy="Give the option to the `nas search` that the worker joins.",
        )
    with ProgressBars() as bars:
        trials = join_search(open_run(folder), given.get("storage"), bars)
    show({"run": str(folder), "trials": trials}, f"The search is over: {trials} trials.", as_json)


def _load_settings(job: str, options: dict[str, Any]) -> tuple[JobSettings, Path | None]:
    """Return the settings of a job with the options, and the run folder if `job` is one."""
    from nas.job import job_path, load_job
    from nas.job.folder import saved_settings
    from nas.job.settings import with_search

    folder = Path(job)
    saved = saved_settings(folder)
    if saved is not None:
        return with_search(saved, options), folder
    return with_search(load_job(job_path(job)), options), None
