"""`nas study`: the networks of a job beside published and random ones that are trained alike."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Json, Out, command_line, job_key, print_json, run_folder, show
from nas.cli.runs import print_plan
from nas.display.formatting import format_duration
from nas.errors import RequestError


def study(
    job: Annotated[
        str,
        typer.Argument(
            metavar="JOB", help="Job file (TOML) or name of a packaged job; or a run folder."
        ),
    ],
    out: Out = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print what would be done and how long it takes, and exit."),
    ] = False,
    worker: Annotated[
        bool, typer.Option("--worker", help="Join the running study of a run folder.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Only write the report of a run folder's study anew.")
    ] = False,
    storage: Annotated[str | None, job_key("search.storage")] = None,
    as_json: Json = False,
) -> None:
    """Train what a job finds beside published and random networks.

    The job is run first. Then some networks of its front, published networks, and random networks
    at the latency of those found are timed in turns, and trained from newly drawn weights: with one
    recipe, equally many epochs, one teacher and several seeds, see [study] in the job file. The
    run folder gets study.md, study.csv, study.json and a figure. Repeat the command to continue
    where it stopped. Other processes, or machines with a copy of the run folder, can join.

    \b
    Example: nas study overnight.toml
    Example: nas study overnight.toml --plan
    Example: nas study results/overnight --worker --storage postgresql://nas@host/nas
    """
    if sum((plan, worker, report)) > 1:
        raise RequestError(
            "Of --plan, --worker and --report, several are given.", remedy="Give one of them."
        )
    if worker:
        _join(Path(job), storage, as_json)
        return
    if report:
        _write_report(Path(job), as_json)
        return
    from nas.display.console import ProgressBars
    from nas.job import job_path, load_job
    from nas.job.settings import with_search
    from nas.job.study import plan_study, run_study

    path = job_path(job)
    settings = load_job(path)
    if storage is not None:
        settings = with_search(settings, {"storage": storage})
    with ProgressBars() as bars:
        if plan:
            planned = plan_study(settings, progress=bars)
        else:
            folder = run_folder(out, settings, path)
            run_study(settings, folder, command=command_line(), progress=bars)
    if not plan:
        _show(folder, as_json)
    elif as_json:
        print_json(planned)
    else:
        print_plan(planned.job)
        counts = ", ".join(f"{count} {kind}" for kind, count in planned.networks.items() if count)
        typer.echo(
            f"Then the study: {planned.trainings} trainings of {planned.epochs} epochs ({counts}), "
            f"about {format_duration(planned.seconds)}."
        )


def _join(folder: Path, storage: str | None, as_json: bool) -> None:
    from nas.job.workers import end_with_main

    # The main process may end during the following imports, which take seconds.
    end_with_main()
    from nas.display.console import ProgressBars
    from nas.job.study import join_study
    from nas.opened_run import open_run

    with ProgressBars() as bars:
        count = join_study(open_run(folder), storage, bars)
    show(
        {"run": folder, "trainings": count},
        f"The study is over: {count} trainings were done here.",
        as_json,
    )


def _write_report(folder: Path, as_json: bool) -> None:
    from nas.report.study import write_study
    from nas.run.study import read_study

    write_study(folder, read_study(folder))
    _show(folder, as_json)


def _show(folder: Path, as_json: bool) -> None:
    from nas.run.study import read_study

    record = read_study(folder)
    lines = [*record.statements, f"The study: {folder / 'study.md'}, {folder / 'study.svg'}"]
    show(record, "\n".join(lines), as_json)
