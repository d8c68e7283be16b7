"""`nas supernet`: training, scoring and proving weight-sharing supernets by themselves."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nas.cli.options import Json, Plot, Seed, command_line, picture, print_json, show
from nas.errors import RequestError

if TYPE_CHECKING:
    from nas.data import Part
    from nas.job import JobSettings
    from nas.supernet.ground_truth import Draw

app = typer.Typer(
    help="Weight-sharing supernets: what accuracies are read from.", no_args_is_help=True
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
def train(
    space: Annotated[
        list[str] | None,
        typer.Option("--space", help="A space's name or Python file; may be repeated."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help='"digits", parquet files, or a folder a class.')
    ] = None,
    job: Annotated[
        str | None, typer.Option(help="A job file instead of the other options.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default results/<name>.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images; else what --budget allows.")
    ] = None,
    budget: Annotated[str, typer.Option(help="Time for all supernets, such as 30m.")] = "30m",
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Pixels a side; by default what suits the data.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, help="Images a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its peak.")] = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Of the training images, for scores.")
    ] = 0.2,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto.")] = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Trains one supernet a space; started again on the same folder, it goes on.

    `nas run` on the folder, with the job.toml in it, does the rest of a job.

    \b
    Example: nas supernet train --space mobilenet_tiny --data digits --epochs 20 --out results/mine
    Example: nas supernet train --job overnight.toml --out results/overnight
    Example: torchrun --nproc-per-node 4 -m nas supernet train --job overnight.toml
    """
    from nas.console import Bars
    from nas.job import job_path, load_job
    from nas.job.supernets import train_only
    from nas.supernet.distributed import team

    if job is not None:
        settings = load_job(job_path(job))
    elif space and data:
        settings = _settings(
            {
                "name": "-".join(Path(each).stem for each in space)[:64],
                "seed": seed,
                "budget": budget,
                "data": {
                    "source": data,
                    "image_size": image_size,
                    "validation_fraction": validation_fraction,
                },
                "training": {
                    "device": device,
                    "epochs": epochs,
                    "batch_size": batch_size,
                    "learning_rate": learning_rate,
                    "precision": precision,
                },
                "space": [{"name": each} for each in space],
            }
        )
    else:
        raise RequestError(
            "There is nothing to train.",
            remedy="Give --space and --data, or --job with a job file.",
        )
    folder = out or Path("results") / settings.name
    if not team().leads:
        train_only(settings, folder)
        return
    with Bars() as bars:
        trained = train_only(settings, folder, command=command_line(), watch=bars)
    show(
        {"run": str(folder), "supernets": list(trained)},
        f"{', '.join(trained)}: trained, in {folder}. How far to trust the order of their scores: "
        f"nas supernet rank {folder}",
        as_json,
    )


@app.command()
def evaluate(
    run: Run,
    arch: Annotated[
        str,
        typer.Argument(help="An architecture's JSON file, a published network's name, or an ID."),
    ],
    part: Annotated[str, typer.Option(help="Validation images: search, or holdout.")] = "search",
    images: Annotated[
        int | None, typer.Option(min=1, help="A first look at so many of them, with its error.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Scores one architecture with a run's supernet, in all and by class.

    \b
    Example: nas supernet evaluate results/quickstart 3f2a --images 100
    Example: nas supernet evaluate results/quickstart 3f2a
    Example: nas supernet evaluate results/quickstart arch.json
    Example: nas supernet evaluate results/mine mobilenet_v2_0.5 --part holdout
    """
    from nas import console
    from nas.describe.architectures import resolve_architecture_of_run
    from nas.job.supernets import opened, supernet_of
    from nas.supernet.evaluation import evaluate_by_class
    from nas.supernet.quick_evaluation import first_look

    if part not in ("search", "holdout"):
        raise RequestError(f"--part is {part!r}.", remedy="Use search or holdout.")
    chosen = cast("Part", part)
    job = opened(run)
    settings = next(iter(job.spaces.values())).settings
    resolved = resolve_architecture_of_run(arch, run, settings).architecture
    supernet = supernet_of(job, run, resolved.space.name)
    architecture = supernet.space.from_json(resolved.to_json())
    record = {
        "space": resolved.space.name,
        "architecture": architecture.to_json(),
        "part": part,
    }
    if images is not None:
        (look,) = first_look(supernet, [architecture], job.data, chosen, images=images)
        show(
            {**record, **asdict(look)},
            f"accuracy {look.accuracy:.2%} on {look.images} of the images of the part {part!r}; on "
            f"all {len(job.data.part(chosen))} it is {look.low:.2%} to {look.high:.2%}",
            as_json,
        )
        return
    accuracy, classes = evaluate_by_class(supernet, architecture, job.data, chosen)
    if as_json:
        print_json({**record, "accuracy": accuracy, "class_accuracy": classes})
        return
    console.table(
        ["class", "accuracy"],
        [(each, "no images" if a is None else f"{a:.1%}") for each, a in classes.items()],
    )
    images = len(job.data.part(chosen))
    console.say(f"accuracy {accuracy:.2%} on the {images} images of the part {part!r}")


@app.command()
def rank(
    run: Run,
    space: Annotated[
        list[str] | None, typer.Option("--space", help="Some of the run's spaces; else all.")
    ] = None,
    nets: Annotated[int, typer.Option(min=3, help="Networks to train alone, a space.")] = 20,
    draw: Annotated[
        str, typer.Option(help="How they are drawn: spread over the sizes, or uniform.")
    ] = "spread",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of training alone; by default the supernet's.")
    ] = None,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Is the supernet's order the order that training gives? Trains networks alone and compares.

    Kendall's tau of both orders, beside what counting multiply-accumulates, parameters or layers
    reaches. Networks that were trained are kept; stopped and started again, it goes on. The run's
    report then says how far its accuracies are to be trusted.

    \b
    Example: nas supernet rank results/quickstart --nets 20
    Example: nas supernet rank results/mine --nets 50 --draw uniform --plot rank.png
    """
    from nas.console import Bars
    from nas.describe import rankings
    from nas.job.supernets import rank_supernets

    picture(plot)
    if draw not in ("spread", "uniform"):
        raise RequestError(f"--draw is {draw!r}.", remedy="Use spread or uniform.")
    how = cast("Draw", draw)
    with Bars() as bars:
        found = rank_supernets(
            run,
            spaces=space or (),
            nets=nets,
            how=how,
            epochs=epochs,
            seed=seed,
            command=command_line(),
            watch=bars,
        )
    if plot is not None:
        rankings.draw_ranking(found, plot)
    if as_json:
        print_json(found.model_dump(mode="json", by_alias=True))
    else:
        rankings.show_ranking(found)


def _settings(values: dict[str, object]) -> JobSettings:
    """A job from options; what was not given keeps its default."""
    from pydantic import ValidationError

    from nas.job import JobSettings
    from nas.job.settings import refused_option

    def given(table: object) -> object:
        if isinstance(table, dict):
            return {key: given(value) for key, value in table.items() if value is not None}
        return table

    try:
        return JobSettings.model_validate(given(values))
    except ValidationError as error:
        raise refused_option(error) from None
