"""Commands about models: `nas retrain`, `nas export`, `nas verify` and `nas benchmark`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Json, Plot, check_plot, print_json
from nas.errors import RequestError

ModelDir = Annotated[
    Path, typer.Argument(metavar="MODEL_DIR", help="Folder models/ID of a run, or a copy of it.")
]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
Pick = Annotated[
    list[str] | None,
    typer.Option("--pick", help="ID of a network of the run; the option may be repeated."),
]


def retrain(
    run: Run,
    pick: Pick = None,
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", help="Name of a published network; may be repeated."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the images; by default those of the run's plan."),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start with newly drawn weights.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Where the images of the run are, if they were moved.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train networks of a run to the end, and test each of them once.

    They start with the weights of the supernet, and learn from its largest network as well. The
    results are in the folder models of the run, and in its report. Repeat the command to continue
    an interrupted training. Published networks are trained with the same recipe, seed and epochs;
    with --from-scratch all networks start alike.

    \b
    Example: nas retrain results/quickstart --pick jf2a
    Example: nas retrain results/quickstart --pick jf2a --reference mobilenet_v2_0.5 --from-scratch
    """
    from nas import console
    from nas.run.run import open_run

    with console.ProgressBars() as bars:
        records = open_run(run, data).retrain(
            *pick or (),
            references=reference or (),
            epochs=epochs,
            from_scratch=from_scratch,
            progress=bars,
        )
    if as_json:
        models = [record.model_dump(mode="json", by_alias=True) for record in records]
        print_json({"run": str(run), "models": models})
        return
    console.print_table(
        ["model", "space", "start", "epochs", "supernet", "hold-out", "test"],
        [
            (
                record.id,
                record.space,
                record.start,
                record.epochs,
                "" if record.supernet_accuracy is None else f"{record.supernet_accuracy:.2%}",
                f"{record.holdout.accuracy:.2%}",
                f"{record.test.accuracy:.2%}",
            )
            for record in records
        ],
        left=("space", "start"),
    )
    console.say(f"The weights are in {run / 'models'}.")


def export(
    run: Run,
    pick: Pick = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Formats, separated by commas; onnx,onnx-int8 by default."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Export each format in int8 as well, if it has int8.")
    ] = False,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest accuracy that int8 may lose on validation images; 0.005 by default."
        ),
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of a weight in int8: 8, or 7 for x86 processors without VNNI instructions; "
            "what this processor needs by default."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the images of the run are, if they were moved.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Export networks of a run to files, and check each file with its own runtime.

    The files are in the folder models/ID of the run, with a card, checksums and a script that
    classifies an image. A network that is not trained to the end is trained first. Files that were
    exported before are kept.

    \b
    Example: nas export results/quickstart --pick jf2a
    Example: nas export results/quickstart --pick jf2a --format onnx --int8
    """
    from nas import console
    from nas.describe.models import print_files
    from nas.run.run import open_run

    with console.ProgressBars() as bars:
        folders = open_run(run, data).export(
            *pick or (),
            formats=_format_names(formats or (), int8=int8),
            max_accuracy_drop=max_accuracy_drop,
            weight_bits=weight_bits,
            progress=bars,
        )
    if as_json:
        models = [
            {"path": str(each.path), **each.card.model_dump(mode="json", by_alias=True)}
            for each in folders
        ]
        print_json({"run": str(run), "models": models})
        return
    for folder in folders:
        print_files(folder.card.files)
        console.say(f"{folder.path}: {folder.path / 'card.md'} says more.")
        if (folder.path / "run.py").is_file():
            console.say(f"Classify an image: python {folder.path / 'run.py'} IMAGE")


def verify(model_dir: ModelDir, as_json: Json = False) -> None:
    """Check an exported model again, on this or another machine.

    The checksums come first. Then each file is run by its own runtime and compared with what torch
    computed at the export, and its accuracy is measured if the images are there. Last, run.py is
    run on an image file of each kind in the data.

    \b
    Example: nas verify results/quickstart/models/jf2a
    """
    from dataclasses import asdict

    from nas import console
    from nas.deploy.verify import verify as verify_files
    from nas.describe.models import describe_script

    with console.ProgressBars() as bars:
        result = verify_files(model_dir, progress=bars)
    if as_json:
        files = [
            {**asdict(each), "file": each.file.model_dump(mode="json")} for each in result.files
        ]
        script = result.script and result.script.model_dump(mode="json")
        print_json({**asdict(result), "path": str(model_dir), "files": files, "script": script})
        return
    console.print_table(
        ["format", "status", "accuracy", "difference", "allowed"],
        [
            (
                each.file.format,
                f"{each.status}: {each.remedy}" if each.remedy else each.status,
                "" if each.file.accuracy is None else f"{each.file.accuracy:.2%}",
                "" if each.file.difference is None else f"{each.file.difference:.2g}",
                "" if each.file.tolerance is None else f"{each.file.tolerance:g}",
            )
            for each in result.files
        ],
        left=("status",),
    )
    if result.no_accuracy:
        console.say(f"The accuracy was not checked: {result.no_accuracy}")
    console.say(describe_script(result.script, result.no_script))


def benchmark(
    model_dir: ModelDir,
    threads: Annotated[
        int, typer.Option(min=1, max=4096, help="Number of threads of each runtime.")
    ] = 1,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Time all files of an exported model on this machine, each with its own runtime.

    Every file runs in a process of its own, and the files are timed in rounds. Nothing in the
    folder is changed.

    \b
    Example: nas benchmark results/quickstart/models/jf2a --plot benchmark.svg
    """
    from dataclasses import asdict

    from nas import console
    from nas.deploy.benchmark import benchmark as time_files
    from nas.deploy.benchmark import draw_benchmark
    from nas.describe.models import print_files
    from nas.this_machine import processor

    check_plot(plot)
    with console.ProgressBars() as bars:
        rows = time_files(model_dir, threads=threads, progress=bars)
    device, _ = processor()
    if plot is not None:
        draw_benchmark([row.file for row in rows if row.status == "timed"], device, plot)
    if as_json:
        files = [{**asdict(row), "file": row.file.model_dump(mode="json")} for row in rows]
        print_json({"path": str(model_dir), "device": device, "threads": threads, "files": files})
        return
    print_files([row.file for row in rows if row.status == "timed"])
    for row in rows:
        if row.status != "timed":
            console.say(f"{row.file.format}: {row.status}. {row.remedy}".rstrip(" ."))
    console.say(f"{device}, {threads} thread(s). Accuracies are those of the export.")


def _format_names(given: Sequence[str], *, int8: bool) -> list[str]:
    """Return the names of formats in options that may name several each.

    Raises RequestError if int8 is asked for and none of the formats has it.
    """
    from nas.deploy.formats import format_names
    from nas.run.settings import DEFAULT_FORMATS

    names = [name.strip() for each in given for name in each.split(",") if name.strip()]
    names = names or list(DEFAULT_FORMATS)
    if int8:
        variants = [f"{name}-int8" for name in names if f"{name}-int8" in format_names()]
        if not variants and not any(name.endswith("-int8") for name in names):
            available = [name for name in format_names() if name.endswith("-int8")]
            raise RequestError(
                f"None of the formats {', '.join(names)} has int8.",
                remedy=f"Formats in int8: {', '.join(available)}.",
            )
        names += variants
    return list(dict.fromkeys(names))
