"""Commands that make models from the networks of a run: `nas retrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nas.cli.options import Json, command_line, print_json

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
    Example: nas retrain results/quickstart --pick 3f2a
    Example: nas retrain results/quickstart --pick 3f2a --reference mobilenet_v2_0.5 --from-scratch
    """
    from nas import console
    from nas.job.retraining import retrain_run

    with console.ProgressBars() as bars:
        records = retrain_run(
            run,
            pick or (),
            reference or (),
            epochs=epochs,
            from_scratch=from_scratch,
            data_source=data,
            command=command_line(),
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
