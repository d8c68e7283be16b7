"""`nas supernet`: train supernets, score architectures, and measure the ranking quality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from nas.cli.options import (
    Json,
    Plot,
    RunFolder,
    Seed,
    check_plot,
    command_line,
    job_key,
    print_json,
    show,
)
from nas.errors import RequestError
from nas.formatting import format_fraction

if TYPE_CHECKING:
    from nas.data import Part
    from nas.job import JobSettings
    from nas.supernet.ground_truth import DrawMethod
    from nas.supernet.ranking_records import IntervalRecord, MatchedRankingRecord, RankingRecord

app = typer.Typer(
    help="Weight-sharing supernets, which score the accuracy of architectures.",
    no_args_is_help=True,
)


@app.command()
def train(
    space: Annotated[
        list[str] | None,
        typer.Option("--space", help="Name or Python file of a search space; may be repeated."),
    ] = None,
    data: Annotated[str | None, job_key("data.source", "--data")] = None,
    job: Annotated[
        str | None, typer.Option(help="A job file instead of the other options.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; results/<name> by default.")] = None,
    epochs: Annotated[int | None, job_key("training.epochs")] = None,
    budget: Annotated[str, typer.Option(help="Time for all supernets, such as 30m.")] = "30m",
    image_size: Annotated[int | None, job_key("data.image_size")] = None,
    flip: Annotated[bool | None, job_key("training.flip", "--flip/--no-flip")] = None,
    shift: Annotated[int | None, job_key("training.shift")] = None,
    on_bad_image: Annotated[str, job_key("data.on_bad_image")] = "fail",
    class_folders: Annotated[str, job_key("data.class_folders")] = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train one supernet for each space. Repeat the command to resume an interrupted training.

    A job file can say more than the options do. `nas run` with the job.toml in the run folder does
    the other stages of a job.

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
        source = {"source": data, "image_size": image_size}
        reading = {"on_bad_image": on_bad_image, "class_folders": class_folders}
        settings = _settings(
            {
                "name": "-".join(Path(each).stem for each in space)[:64],
                "seed": seed,
                "budget": budget,
                "data": {**source, **reading},
                "training": {"epochs": epochs, "flip": flip, "shift": shift},
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
    from nas import console
    from nas.cli.architecture import resolve_architecture
    from nas.job.supernets import fit_score_correction, load_supernet, open_job
    from nas.run.record import read_run
    from nas.supernet.evaluation import evaluate_by_class
    from nas.supernet.quick_evaluation import evaluate_quickly

    if part not in ("search", "holdout"):
        raise RequestError(f"--part is {part!r}.", remedy="Use search or holdout.")
    split = cast("Part", part)
    job = open_job(run)
    settings = next(iter(job.spaces.values())).settings
    resolved = resolve_architecture(arch, settings, run=run).architecture
    name = resolved.space.name
    supernet = load_supernet(job, run, name)
    architecture = supernet.space.from_json(resolved.to_json())
    record = {"space": name, "architecture": architecture.to_json(), "part": part}
    total = len(job.data.part(split))
    if images is not None:
        (quick,) = evaluate_quickly(supernet, [architecture], job.data, split, images=images)
        show(
            {**record, **vars(quick)},
            f"Accuracy {quick.accuracy:.2%} on {quick.images} of the {total} images of the "
            f"{part} split. On all of them it is between {quick.low:.2%} and {quick.high:.2%}.",
            as_json,
        )
        return
    accuracy, class_accuracy = evaluate_by_class(supernet, architecture, job.data, split)
    searched = read_run(run)
    correction = searched.correction if searched.study else fit_score_correction(job, run, searched)
    corrected = correction and correction.correct(accuracy, architecture.macs, name)
    if as_json:
        accuracies = {"accuracy": accuracy, "corrected_accuracy": corrected}
        print_json({**record, **accuracies, "class_accuracy": class_accuracy})
        return
    console.print_table(
        ["class", "accuracy"],
        [(name, format_fraction(value) or "no images") for name, value in class_accuracy.items()],
    )
    after = "" if corrected is None else f", {corrected:.2%} after the correction for size"
    console.say(f"Accuracy {accuracy:.2%} on the {total} images of the {part} split{after}.")


@app.command()
def rank(
    run: RunFolder,
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
    from nas.job.supernets import rank_supernets

    check_plot(plot)
    if draw not in ("matched", "spread", "uniform"):
        raise RequestError(f"--draw is {draw!r}.", remedy="Use matched, spread or uniform.")
    with ProgressBars() as bars:
        ranking = rank_supernets(
            run,
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
        from nas import plotting
        from nas.report.figures import draw_ranking

        plotting.save(draw_ranking(ranking.spaces), plot)
    if as_json:
        print_json(ranking)
    else:
        print_ranking(ranking)


def print_ranking(ranking: RankingRecord) -> None:
    """Print the ranking quality of each space's supernet, and of all together."""
    from nas.console import say
    from nas.supernet.ranking import MIN_DISTINCT_SCORES

    for name, space in ranking.spaces.items():
        say(f"{name}: {space.nets} networks, each trained standalone. In brackets: 95%.")
        if space.matched is None:
            say(
                f"The supernet has {space.distinct_scores} distinct scores; a rank correlation "
                f"needs at least {MIN_DISTINCT_SCORES}."
            )
        else:
            _print_matched(space.matched)
        say(
            f"Standalone training minus supernet score is "
            f"{space.offset.text(scale=100, sign='+')} points. Choosing by the supernet under a "
            f"MACs budget loses {100 * space.regret.supernet:.2f} points of accuracy, choosing by "
            f"MACs {100 * space.regret.macs:.2f}. {space.tied_pairs} pairs have equal scores."
        )
    pooled = ranking.pooled
    if pooled is not None:
        say(
            f"All {pooled.nets} networks together: Kendall tau {_interval(pooled.kendall_tau)}, "
            f"without the offsets of the spaces {_interval(pooled.without_offsets)}."
        )


def _print_matched(matched: MatchedRankingRecord) -> None:
    from nas import console
    from nas.supernet.matched_ranking import MAX_LATENCY_RATIO
    from nas.supernet.ranking_records import ORDER_NAMES

    cost = matched.cost_name
    within = f"within {MAX_LATENCY_RATIO - 1:.0%} of {cost}"
    console.print_records(
        matched.kendall_tau,
        {
            "order by": lambda order: ORDER_NAMES[order],
            f"tau {within} ({matched.pairs} pairs)": lambda order: _interval(
                matched.kendall_tau[order]
            ),
            "share of attainable gain": lambda order: _interval(matched.gain[order]),
            f"partial tau given {cost}": lambda order: _interval(matched.partial_tau[order]),
            "tau over all sizes": lambda order: _interval(matched.global_tau[order]),
        },
    )
    if matched.lead is not None:
        console.say(
            f"The supernet's tau {within} minus that of the best count is "
            f"{matched.lead.text(sign='+')}."
        )
    if noise := matched.noise_text:
        console.say(noise)
    console.print_table(
        [cost, "networks", *(f"tau of {ORDER_NAMES[order]}" for order in matched.kendall_tau)],
        [
            (
                matched.costs_text(stratum),
                stratum.nets,
                *(
                    "undefined" if tau is None else f"{tau:.2f}"
                    for tau in stratum.kendall_tau.values()
                ),
            )
            for stratum in matched.strata
        ],
    )


def _interval(statistic: IntervalRecord | None) -> str:
    return "undefined" if statistic is None else statistic.text()


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
