"""`nas supernet`: train supernets, score architectures, and measure the ranking quality."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nas.cli.options import Json, Plot, Seed, check_plot, command_line, job_key, print_json, show
from nas.errors import RequestError

if TYPE_CHECKING:
    from nas.data import Part
    from nas.job import JobSettings
    from nas.supernet.ground_truth import DrawMethod

app = typer.Typer(
    help="Weight-sharing supernets, which score the accuracy of architectures.",
    no_args_is_help=True,
)

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command()
def train(
    space: Annotated[
        list[str] | None,
        typer.Option("--space", help="Name or Python file of a search space; may be repeated."),
    ] = None,
    data: Annotated[
        str | None,
        job_key("data.source", "--data"),
    ] = None,
    job: Annotated[
        str | None, typer.Option(help="A job file instead of the other options.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; results/<name> by default.")] = None,
    epochs: Annotated[
        int | None,
        job_key("training.epochs"),
    ] = None,
    budget: Annotated[str, typer.Option(help="Time for all supernets, such as 30m.")] = "30m",
    image_size: Annotated[
        int | None,
        job_key("data.image_size"),
    ] = None,
    batch_size: Annotated[int | None, job_key("training.batch_size")] = None,
    learning_rate: Annotated[float | None, job_key("training.learning_rate")] = None,
    flip: Annotated[bool | None, job_key("training.flip", "--flip/--no-flip")] = None,
    shift: Annotated[int | None, job_key("training.shift")] = None,
    validation_fraction: Annotated[float | None, job_key("data.validation_fraction")] = None,
    on_bad_image: Annotated[str, job_key("data.on_bad_image")] = "fail",
    class_folders: Annotated[str, job_key("data.class_folders")] = "auto",
    device: Annotated[str, job_key("training.device")] = "auto",
    precision: Annotated[str, job_key("training.precision")] = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train one supernet for each space. Repeat the command to resume an interrupted training.

    `nas run` with the job.toml in the run folder does the other stages of a job.

    \b
    Example: nas supernet train --space mobilenet_tiny --data digits --epochs 20 --out results/mine
    Example: nas supernet train --job overnight.toml --out results/overnight
    Example: torchrun --nproc-per-node 4 -m nas supernet train --job overnight.toml
    """
    from nas.console import ProgressBars
    from nas.job import job_path, load_job
    from nas.job.supernets import train_job_supernets
    from nas.supernet.distributed import current_process_group

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
                    "on_bad_image": on_bad_image,
                    "class_folders": class_folders,
                },
                "training": {
                    "device": device,
                    "epochs": epochs,
                    "batch_size": batch_size,
                    "learning_rate": learning_rate,
                    "flip": flip,
                    "shift": shift,
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
    if not current_process_group().is_main:
        train_job_supernets(settings, folder)
        return
    with ProgressBars() as bars:
        trained = train_job_supernets(settings, folder, command=command_line(), progress=bars)
    show(
        {"run": str(folder), "supernets": list(trained)},
        f"Trained {', '.join(trained)} in {folder}. To measure how well they rank networks: "
        f"nas supernet rank {folder}",
        as_json,
    )


@app.command()
def evaluate(
    run: Run,
    arch: Annotated[
        str,
        typer.Argument(help="Architecture: a JSON file, a reference network's name, or an ID."),
    ],
    part: Annotated[str, typer.Option(help="Validation split: search, or holdout.")] = "search",
    images: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluate a sample of so many images, with its interval."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the accuracy of one architecture with a run's supernet, in all and by class.

    The accuracy is also printed as a search corrects it for the size of networks.

    \b
    Example: nas supernet evaluate results/quickstart jf2a --images 100
    Example: nas supernet evaluate results/quickstart jf2a
    Example: nas supernet evaluate results/quickstart arch.json
    Example: nas supernet evaluate results/mine mobilenet_v2_0.5 --part holdout
    """
    from nas import console
    from nas.describe.architectures import resolve_architecture_of_run
    from nas.job.supernets import fit_score_correction
    from nas.run.run import open_run
    from nas.supernet.evaluation import evaluate_by_class
    from nas.supernet.quick_evaluation import evaluate_quickly

    if part not in ("search", "holdout"):
        raise RequestError(f"--part is {part!r}.", remedy="Use search or holdout.")
    split = cast("Part", part)
    opened = open_run(run)
    resolved = resolve_architecture_of_run(arch, run, opened.space_settings).architecture
    supernet = opened.supernet(resolved.space.name)
    architecture = supernet.space.from_json(resolved.to_json())
    record = {
        "space": resolved.space.name,
        "architecture": architecture.to_json(),
        "part": part,
    }
    total = len(opened.data.part(split))
    if images is not None:
        (quick,) = evaluate_quickly(supernet, [architecture], opened.data, split, images=images)
        show(
            {**record, **asdict(quick)},
            f"Accuracy {quick.accuracy:.2%} on {quick.images} of the {total} images of the "
            f"{part} split. On all of them it is between {quick.low:.2%} and {quick.high:.2%}.",
            as_json,
        )
        return
    accuracy, class_accuracy = evaluate_by_class(supernet, architecture, opened.data, split)
    searched = opened.record
    correction = searched.correction if searched.study else fit_score_correction(opened)
    corrected = (
        None
        if correction is None
        else correction.correct(accuracy, architecture.macs, resolved.space.name)
    )
    if as_json:
        accuracies = {"accuracy": accuracy, "corrected_accuracy": corrected}
        print_json({**record, **accuracies, "class_accuracy": class_accuracy})
        return
    console.print_table(
        ["class", "accuracy"],
        [
            (name, "no images" if value is None else f"{value:.1%}")
            for name, value in class_accuracy.items()
        ],
    )
    after = "" if corrected is None else f", {corrected:.2%} after the correction for size"
    console.say(f"Accuracy {accuracy:.2%} on the {total} images of the {part} split{after}.")


@app.command()
def rank(
    run: Run,
    space: Annotated[
        list[str] | None, typer.Option("--space", help="Spaces to rank; all by default.")
    ] = None,
    nets: Annotated[int, typer.Option(min=3, help="Networks to train, for each space.")] = 50,
    draw: Annotated[
        str,
        typer.Option(
            help="How networks are drawn: matched in latency, spread over the sizes, or uniform."
        ),
    ] = "matched",
    repeated: Annotated[
        int,
        typer.Option(
            min=0, help="Networks to train twice: how well can the order be known at all?"
        ),
    ] = 20,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Epochs of standalone training; the supernet's by default."),
    ] = None,
    seed: Seed = 0,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Measure how well supernets rank networks, against networks that are trained standalone.

    Draws networks for five latency budgets and prints, among networks of equal latency, Kendall's
    tau between the two orders and the share of the attainable gain that picking by the supernet
    brings; as baselines those of multiply-accumulates, parameters, depth and latency. Repeat the
    command to resume it: trained networks are kept. Afterwards `nas report` adds the ranking
    quality to the run's report.

    \b
    Example: nas supernet rank results/quickstart --nets 25 --repeated 10
    Example: nas supernet rank results/mine --nets 50 --draw uniform --plot rank.png
    """
    from nas.console import ProgressBars
    from nas.describe import rankings
    from nas.job.supernets import rank_supernets
    from nas.run.run import open_run

    check_plot(plot)
    if draw not in ("matched", "spread", "uniform"):
        raise RequestError(f"--draw is {draw!r}.", remedy="Use matched, spread or uniform.")
    with ProgressBars() as bars:
        ranking = rank_supernets(
            open_run(run),
            spaces=space or (),
            nets=nets,
            how=cast("DrawMethod", draw),
            repeated=repeated,
            epochs=epochs,
            seed=seed,
            command=command_line(),
            progress=bars,
        )
    if plot is not None:
        rankings.draw_ranking(ranking, plot)
    if as_json:
        print_json(ranking.model_dump(mode="json", by_alias=True))
    else:
        rankings.print_ranking(ranking)


def _settings(values: dict[str, object]) -> JobSettings:
    """Return the settings of a job from options; those that are None keep their defaults.

    Raises RequestError for a value that is not allowed, naming the option.
    """
    from pydantic import ValidationError

    from nas.job import JobSettings
    from nas.job.settings_errors import option_error

    def without_none(table: object) -> object:
        if isinstance(table, dict):
            return {key: without_none(value) for key, value in table.items() if value is not None}
        return table

    try:
        return JobSettings.model_validate(without_none(values))
    except ValidationError as error:
        raise option_error(error) from None
