"""`nas quickstart`, `run`, `retarget`, `search` and `report`: jobs and their results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import (
    Json,
    Out,
    RequestedJob,
    RunFolder,
    command_line,
    job_key,
    print_json,
    show,
    with_options,
)
from nas.display import console
from nas.display.formatting import capitalised, format_duration, round_up
from nas.errors import BudgetError, DeviceAwaitedError, RequestError

if TYPE_CHECKING:
    from nas.job import JobResult, JobSettings
    from nas.job.plan import JobPlan


def quickstart(out: Out = None, as_json: Json = False) -> None:
    """Run a small job in minutes.

    It searches networks for the handwritten digits of scikit-learn. Its five minutes are more where
    the latency table alone takes them, as on a busy machine. Repeat the command to continue where
    it stopped.

    \b
    Example: nas quickstart
    """
    job = RequestedJob.read("quickstart", out)
    try:
        _run_job(job, as_json)
    except BudgetError as error:
        typer.echo(
            f"This machine is busy or slow: {job.settings.budget} are too short for its latency "
            f"table. The quickstart gets {error.smallest}.",
            err=True,
        )
        longer = job.settings.model_copy(update={"budget": error.smallest})
        _run_job(job._replace(settings=longer), as_json)


def run(
    job: Annotated[
        str,
        typer.Argument(
            help="Job file (TOML), run folder, or name of a packaged job such as quickstart."
        ),
    ],
    out: Out = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print what the job would do and how long it takes, and exit."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a whole job and write its report.

    The stages are the latency table, the supernets, the search and the timing of the front. Repeat
    the command to continue where it stopped.

    \b
    Example: nas run overnight.toml
    Example: nas run overnight.toml --plan
    """
    requested = RequestedJob.read(job, out)
    if plan:
        _plan_job(requested.settings, as_json)
    else:
        _run_job(requested, as_json)


def _run_job(requested: RequestedJob, as_json: bool) -> None:
    from nas import job

    with console.ProgressBars() as bars:
        result = job.run_job(**requested._asdict(), command=command_line(), progress=bars)
    _show_result(result, as_json)


def _show_result(result: JobResult, as_json: bool) -> None:
    members, path, lines = result.members, result.run.path, []
    if members:
        example_ms = round_up(members[len(members) // 2].latency_us / 1000, digits=2)
        lines.append(
            f"{len(members)} networks are on the front: no other network of the run is as fast and "
            f"has a higher score. Open {result.report} and choose, for "
            f"example with nas select {path} --max-latency-ms {example_ms:g}"
        )
    for model in result.models:
        lines.append(f"Trained model: {model}")
        if (model / "run.py").is_file():
            lines[-1] += f". Classify an image: python {model / 'run.py'} IMAGE"
    document = {"run": path, "report": result.report, "front": len(members)}
    document |= {"models": result.models, "waiting": result.waiting or None}
    show(document, "\n".join([*lines, *[result.waiting] * bool(result.waiting)]), as_json)


def _plan_job(settings: JobSettings, as_json: bool) -> None:
    from nas import job

    with console.ProgressBars() as bars:
        plan = job.plan_job(settings, progress=bars)
    if as_json:
        print_json(plan)
    else:
        print_plan(plan)


def print_plan(plan: JobPlan) -> None:
    """Print the work and the estimated time of each stage of a job as a table."""
    from nas.job.planning import (
        ANCHORS,
        EXPORT,
        FINALISTS,
        LOSSES,
        MEASURE,
        PREPARE,
        REFERENCES,
        SEARCH,
        SUPERNETS,
        TABLE,
    )

    by_kit = ", timed on the device by a kit" if plan.timed_by == "a kit" else ""
    checked = by_kit or " to time, and networks to check predictions"
    work = {
        PREPARE: f"images of {plan.image_size} px, spaces and device",
        TABLE: f"{plan.kernels} kernels{checked}",
        SUPERNETS: ", ".join(f"{name}: {n:.3g} epochs" for name, n in plan.epochs.items()),
        ANCHORS: "networks trained alone, to compare the spaces",
        LOSSES: "networks quantised, to know what int8 loses in each space",
        SEARCH: f"about {plan.trials} architectures, scored on {plan.score_images} images",
        MEASURE: f"{plan.measure} whole networks{by_kit}",
        FINALISTS: f"{plan.retrain} networks for {plan.finalist_epochs} epochs",
        EXPORT: "these networks, as files to deploy",
        REFERENCES: f"at most {plan.references}, timed and trained likewise",
    }
    console.say(plan.data)
    total_s = sum(plan.seconds.values())
    rows = [
        (name, work[name], format_duration(seconds), f"{seconds / total_s:.0%}")
        for name, seconds in plan.seconds.items()
    ]
    total = ("total", "", format_duration(total_s), "")
    console.print_table(["stage", "work", "time", "share"], [*rows, total])
    uncertain = (
        f"about {plan.uncertain} of {plan.kernels} kernels will be uncertain: there is no time to "
        "wait until their timings agree. A longer budget has it, or nas table build beforehand"
    )
    for sentence in (*[uncertain] * (plan.uncertain > 0), plan.image_changes, *plan.idle_limits):
        console.say(f"{capitalised(sentence)}.")


@with_options(
    *("search.trials", "search.minutes", "search.sampler", "search.workers", "search.storage"),
    "search.max_latency_ms",
    stall=Annotated[str | None, job_key("search.stall")],
)
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
    as_json: Json = False,
    **options: Any,
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
    if options.get("stall", "").isdecimal():
        options["stall"] = int(options["stall"])
    if worker:
        _join_search(Path(job), options, out, as_json)
        return
    from nas.job import search_job
    from nas.job.settings import with_options
    from nas.run.run import Run

    settings, folder, own_spaces = RequestedJob.read(job, out)
    settings = with_options(settings, search=options)
    try:
        with console.ProgressBars() as bars:
            result = search_job(
                settings, folder, command=command_line(), progress=bars, own_spaces=own_spaces
            )
    except DeviceAwaitedError as error:
        show({"run": folder, "waiting": error.message}, error.message, as_json)
        return
    completed = sum(trial.state == "complete" for trial in result.trials)
    show(
        {
            "run": folder,
            "trials": completed,
            "front": len(result.front),
            "ended": result.stop_reason,
        },
        f"{completed} architectures, {len(result.front)} on the predicted front "
        f"({result.stop_reason}): {folder / 'report.html'}\n"
        f"To time the front: {Run(folder).continue_command}",
        as_json,
    )


def _join_search(folder: Path, options: dict[str, Any], out: Path | None, as_json: bool) -> None:
    from nas.job.workers import end_with_main

    # The main process may end during the following imports, which take seconds.
    end_with_main()
    from nas.job.searching import join_search
    from nas.opened_run import open_run

    others = [name for name in (*options, *(["out"] if out else [])) if name != "storage"]
    if others:
        raise RequestError(
            f"--worker and --{others[0].replace('_', '-')} do not go together: a worker takes the "
            "settings of the run.",
            remedy="Give the option to the `nas search` that the worker joins.",
        )
    with console.ProgressBars() as bars:
        trials = join_search(open_run(folder), options.get("storage"), bars)
    show({"run": folder, "trials": trials}, f"The search is over: {trials} trials.", as_json)


@with_options(
    *("device.runtime", "device.target", "device.threads", "device.dtype", "device.batch"),
    *("budget", "search.max_latency_ms", "finish.retrain"),
    table=Annotated[
        Path | None, typer.Option(help="Latency table of the device, or the folder for it.")
    ],
    trials=Annotated[
        int | None, typer.Option(help="Number of networks to score beside those of the run.")
    ],
)
def retarget(
    run_folder: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the new run; by default RUN-<runtime>-<dtype>."),
    ] = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Make the front of a run for another runtime or device, without its training.

    The new run is a folder of its own. It takes the supernets and the scores of the run, builds the
    latency table of the device, searches on from the scores, and times the front. Trained networks
    on the new front keep their weights. Its default budget is 30 minutes. Repeat the command to
    continue where it stopped.

    \b
    Example: nas retarget results/overnight --runtime onnxruntime --dtype int8
    Example: nas retarget results/overnight --table latency_tables/board.jsonl --retrain 0
    """
    from nas import job
    from nas.opened_run import open_run

    with console.ProgressBars() as bars:
        result = job.retarget(
            open_run(run_folder), out, **options, command=command_line(), progress=bars
        )
    _show_result(result, as_json)


def report(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    out: Annotated[
        Path | None, typer.Option(help="File of the page that compares several runs.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder for figures of the run as PNG and SVG, instead of its report."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the report of a run anew, compare several runs, or write figures of a run.

    The files of a report are report.html, front.csv and front.json in the run folder.

    A comparison is one page. It says in what the runs differ, such as device, runtime, dtype or
    epochs. It has their fronts together, both latencies of the architectures that they share, and
    what a network that was chosen in one run loses in another one.

    Figures are as wide as one or two columns of a paper.

    \b
    Example: nas report results/quickstart
    Example: nas report results/phone results/board --out compare.html
    Example: nas report results/quickstart --figures figures
    """
    from nas.opened_run import open_run

    first, *others = run_folders
    if others and figures is not None:
        raise RequestError(
            "--figures takes one run.", remedy=f"nas report {first} --figures {figures}"
        )
    if others and out is None:
        raise RequestError(
            "The comparison of several runs needs the name of its file.",
            remedy="Name it: --out compare.html.",
        )
    if not others and out is not None:
        raise RequestError(
            "--out is for the comparison of several runs; the report of one is in its folder.",
            remedy="Name another run, too, or leave --out away.",
        )
    runs = [open_run(folder) for folder in run_folders]
    if figures is not None:
        from nas.report.figures import write_figures

        paths = write_figures(runs[0], figures)
        show({"figures": paths}, "\n".join(map(str, paths)), as_json)
    elif out is not None:
        from nas.report import comparison

        path = comparison.build(runs, out)
        show({"report": path}, f"{path}", as_json)
    else:
        from nas.report import page

        path = page.build(runs[0])
        show({"report": path}, f"{path}", as_json)
