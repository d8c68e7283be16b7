"""`nas supernet`: train supernets, score architectures, and measure the ranking quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from nas.cli.options import (
    Json,
    RequestedJob,
    RunFolder,
    Seed,
    command_line,
    job_key,
    print_json,
    show,
    with_options,
)
from nas.display import console
from nas.display.formatting import format_accuracy
from nas.errors import RequestError

if TYPE_CHECKING:
    from nas.data import Part
    from nas.job import JobSettings
    from nas.supernet.ranking_records import RankingRecord, SpaceRanking

app = typer.Typer(
    help="Weight-sharing supernets, which score the accuracy of architectures.",
    no_args_is_help=True,
)


_KEYS = {
    "data": ("image_size", "on_bad_image", "class_folders"),
    "training": ("epochs", "shift"),
}
"""Keys that are options of the same name, by their table."""


@app.command()
@with_options(
    *(f"{table}.{name}" for table, names in _KEYS.items() for name in names),
    data=Annotated[str | None, job_key("data.source")],
    flip=Annotated[bool | None, job_key("training.flip", "--flip/--no-flip")],
)
def train(
    space: Annotated[
        list[str] | None,
        typer.Option("--space", help="Name or Python file of a search space; may be repeated."),
    ] = None,
    job: Annotated[
        str | None, typer.Option(help="A job file instead of the other options.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; results/<name> by default.")] = None,
    budget: Annotated[str, typer.Option(help="Time for all supernets, such as 30m.")] = "30m",
    seed: Seed = 0,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Train one supernet for each space. Repeat the command to resume an interrupted training.

    A job file can say more than the options do. `nas run` with the job.toml in the run folder does
    the other stages of a job.

    \b
    Example: nas supernet train --space mobilenet_tiny --data digits --epochs 20 --out results/mine
    Example: nas supernet train --job overnight.toml --out results/overnight
    Example: torchrun --nproc-per-node 4 -m nas supernet train --job overnight.toml
    """
    from nas.job.supernets import train_job_supernets
    from nas.supernet.distributed import current_process_group

    if job is not None:
        settings, folder, _ = RequestedJob.read(job, out)
    elif space and "data" in options:
        settings = _settings(space, {"seed": seed, "budget": budget}, options)
        folder = out or Path("results") / settings.name
    else:
        raise RequestError(
            "There is nothing to train.",
            remedy="Give --space and --data, or --job with a job file.",
        )
    if not current_process_group().is_main:
        train_job_supernets(settings, folder)
        return
    with console.ProgressBars() as bars:
        trained = train_job_supernets(settings, folder, command=command_line(), progress=bars)
    show(
        {"run": str(folder), "supernets": list(trained)},
        f"Trained {', '.join(trained)} in {folder}. To measure how well they rank networks: "
        f"nas supernet rank {folder}",
        as_json,
    )


def _settings(spaces: list[str], keys: dict[str, Any], options: dict[str, Any]) -> JobSettings:
    """Return the job of options, named after its spaces.

    Args:
        spaces: names or files of its spaces.
        keys: its keys outside of tables.
        options: `data`, `flip` and options of `_KEYS`, as far as they are given.
    """
    from pydantic import ValidationError

    from nas.files.names import name_like
    from nas.job import JobSettings
    from nas.job.settings_errors import option_error

    try:
        name = name_like("-".join(Path(each).stem for each in spaces))
    except ValueError as error:
        raise RequestError(f"No job can be named after --space: {error}.") from None
    values = {
        table: {key: options[key] for key in names if key in options}
        for table, names in {**_KEYS, "training": (*_KEYS["training"], "flip")}.items()
    }
    values["data"]["source"] = options["data"]
    try:
        return JobSettings.model_validate(
            {"name": name, **keys, **values, "space": [{"name": each} for each in spaces]}
        )
    except ValidationError as error:
        raise option_error(error) from None


@app.command()
def evaluate(
    run: RunFolder,
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
    from nas.cli.architecture import resolve_architecture
    from nas.job.supernets import fit_score_correction
    from nas.opened_run import open_run
    from nas.statistics import wilson_interval
    from nas.supernet.evaluation import accuracy_by_class, predict
    from nas.supernet.quick_evaluation import evaluate_quickly

    if part not in ("search", "holdout"):
        raise RequestError(f"--part is {part!r}.", remedy="Use search or holdout.")
    split = cast("Part", part)
    opened = open_run(run)
    resolved = resolve_architecture(arch, opened.space_settings, run=run).architecture
    name = resolved.space.name
    supernet = opened.supernet(name)
    architecture = supernet.space.from_json(resolved.to_json())
    record = {"space": name, "architecture": architecture.to_json(), "part": part}
    total = len(opened.data.part(split))
    if images is not None:
        quick = evaluate_quickly(supernet, architecture, opened.data, split, images)
        sample = min(images, total)
        show(
            {**record, "accuracy": quick.value, "low": quick.low, "high": quick.high,
             "images": sample},
            f"Accuracy {format_accuracy(quick)} on {sample} of the {total} images of the {part} "
            "split. The interval is for all of them.",
            as_json,
        )  # fmt: skip
        return
    shown = opened.data.part(split)
    (answers,) = predict(supernet, [architecture], opened.data, shown)
    accuracy, class_accuracy = accuracy_by_class(opened.data, answers, shown.labels)
    searched = opened.record
    correction = searched.correction if searched.study else fit_score_correction(opened)
    corrected = correction and correction.correct(accuracy, architecture.macs, name)
    if as_json:
        accuracies = {"accuracy": accuracy, "corrected_accuracy": corrected}
        print_json({**record, **accuracies, "class_accuracy": class_accuracy})
        return
    console.print_table(
        ["class", "accuracy"],
        [
            (name, "no images" if value is None else format_accuracy(wilson_interval(value, [n])))
            for (name, value), n in zip(
                class_accuracy.items(), opened.images.class_counts[part], strict=True
            )
        ],
    )
    after = "" if corrected is None else f", {corrected:.1%} after the correction for size"
    console.say(
        f"Accuracy {opened.images.text(accuracy, part)} on the {total} images of the {part} "
        f"split{after}."
    )


@app.command()
def rank(
    run: RunFolder,
    space: Annotated[
        list[str] | None, typer.Option("--space", help="Spaces to rank; all by default.")
    ] = None,
    nets: Annotated[int, typer.Option(min=3, help="Networks to train, for each space.")] = 50,
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
    as_json: Json = False,
) -> None:
    """Measure how well supernets rank networks, against networks that are trained standalone.

    Draws networks for five latency budgets and prints, among networks of equal latency, Kendall's
    tau between the two orders; to compare, that of multiply-accumulates, and the one that a second
    training is expected to reach. Repeat the command to resume it: networks are not trained again.
    Afterwards `nas report` adds the ranking quality to the run's report.

    \b
    Example: nas supernet rank results/quickstart --nets 25 --repeated 10
    Example: nas supernet rank results/mine --nets 50
    """
    from nas.job.supernets import rank_supernets
    from nas.opened_run import open_run

    with console.ProgressBars() as bars:
        ranking = rank_supernets(
            open_run(run),
            spaces=space or (),
            nets=nets,
            repeated=repeated,
            epochs=epochs,
            seed=seed,
            command=command_line(),
            progress=bars,
        )
    if as_json:
        print_json(ranking)
    else:
        _print_ranking(ranking)


def _print_ranking(ranking: RankingRecord) -> None:
    """Print the ranking quality of each space's supernet, and of all together."""
    from nas.supernet.ranking import MIN_DISTINCT_SCORES

    for name, space in ranking.spaces.items():
        console.say(f"{name}: {space.nets} networks, each trained standalone. In brackets: 95%.")
        if space.kendall_tau:
            _print_taus(space)
        else:
            console.say(
                f"The supernet has {space.distinct_scores} distinct scores; a rank correlation "
                f"needs at least {MIN_DISTINCT_SCORES}."
            )
        console.say(
            "Standalone training minus supernet score is "
            f"{space.offset.text(scale=100, sign='+')} points."
        )
    pooled = ranking.pooled
    if pooled and pooled.kendall_tau and pooled.without_offsets:
        console.say(
            f"All {pooled.nets} networks together: Kendall tau {pooled.kendall_tau.text()}, "
            f"without the offsets of the spaces {pooled.without_offsets.text()}."
        )


def _print_taus(space: SpaceRanking) -> None:
    from nas.supernet.ranking import MAX_LATENCY_RATIO
    from nas.supernet.ranking_records import ORDER_NAMES

    within = f"{MAX_LATENCY_RATIO - 1:.0%} of {space.cost_name}"
    console.print_records(
        space.kendall_tau.items(),
        {
            "order by": lambda row: ORDER_NAMES[row[0]],
            f"Kendall tau within {within} ({space.pairs} pairs)": lambda row: (
                "not known" if row[1] is None else row[1].text()
            ),
        },
    )
