"""`nas cascade`: chains of trained networks that answer by how confident they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import Json, RunFolder, print_json
from nas.display import console
from nas.display.formatting import format_latency

if TYPE_CHECKING:
    from nas.plans.cascade import Cascade


def cascade(
    run: RunFolder,
    stages: Annotated[int, typer.Option(help="Most networks of a cascade: 2 or 3.")] = 2,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Largest mean latency in milliseconds.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest accuracy, as a fraction, that it may lose to the most accurate network; "
            "0 without --max-latency-ms."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Chain trained networks: a fast one answers what it is sure of, a slower one the rest.

    A network answers an image if its confidence reaches its threshold. Thresholds are chosen on one
    half of the images that judge trained networks, and cascades are judged on the other half, by
    the stored answers of each network. The command prints the curve of the best cascades, and the
    one to choose: the fastest that loses at most --max-accuracy-drop; with --max-latency-ms alone,
    the most accurate one. A cascade that a paired test does not show to be more accurate than each
    single network that is as fast on average is said to be none.

    \b
    Example: nas cascade results/quickstart
    Example: nas cascade results/quickstart --stages 3 --max-latency-ms 0.05
    Example: nas cascade results/quickstart --max-accuracy-drop 0.005
    """
    from nas.opened_run import open_run

    plan = open_run(run).cascades(stages)
    chosen = plan.choose(max_latency_ms=max_latency_ms, max_accuracy_drop=max_accuracy_drop)
    if as_json:
        print_json(
            {
                "run": run,
                "images": plan.images,
                "curve": plan.curve,
                "chosen": chosen,
                "is_better": chosen.is_better,
                "verdict": chosen.verdict,
                "left_out": plan.notes,
            }
        )
        return
    _print_curve(plan.curve)
    for note in plan.notes:
        console.say(f"In no cascade: {note}.")
    console.say(f"Accuracies are those on {plan.images}; the others chose the thresholds.")
    console.say(f"{chosen.name}: {chosen.rule}.")
    console.say(
        f"Accuracy {chosen.accuracy_text}; latency {format_latency(chosen.mean_us)} on average, "
        f"{format_latency(chosen.high_us)} for 95% of the images, "
        f"{format_latency(chosen.worst_us)} at worst: sums of the networks' own."
    )
    console.say(chosen.verdict)


def _print_curve(curve: list[Cascade]) -> None:
    """Print one row for each cascade, the fastest first."""
    console.print_records(
        curve,
        {
            "cascade": lambda each: each.name,
            "thresholds": lambda each: ", ".join(f"{own:.5g}" for own in each.thresholds),
            "answered": lambda each: ", ".join(f"{own:.0%}" for own in each.answered),
            "mean": lambda each: format_latency(each.mean_us),
            "95%": lambda each: format_latency(each.high_us),
            "worst": lambda each: format_latency(each.worst_us),
            "accuracy": lambda each: each.accuracy_text,
            "better": lambda each: "yes" if each.is_better else "not shown",
        },
        left=("thresholds",),
    )
