"""Commands about shipped models: `nas compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import Json, print_json
from nas.display import console

if TYPE_CHECKING:
    from nas.lifecycle.comparison import Comparison

MAX_CLASSES = 20
"""Most classes of which a row is printed: those with the most negative flips."""

MaxNegativeFlips = Annotated[
    float | None,
    typer.Option(
        help="Largest share of the images, as a fraction, that were right and are wrong now."
    ),
]


def compare(
    before: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the present model.")],
    now: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the model after it.")],
    max_negative_flips: MaxNegativeFlips = None,
    as_json: Json = False,
) -> None:
    """Say what changes for users if an exported model takes the place of another one.

    Both models must have been judged by the same images; they may be of two runs. Each image is
    compared with itself: the command prints the difference of the accuracies with a paired test,
    the images that were right and are wrong now, by class, and size, latency and energy of the
    files. With --max-negative-flips the exit status is 1 if too many images were right and are
    wrong now.

    \b
    Example: nas compare results/first/models/jf2a results/second/models/k31b
    Example: nas compare old/jf2a new/k31b --max-negative-flips 0.01
    """
    from nas.lifecycle.comparison import Judged, compare_models

    comparison = compare_models(Judged.of_folder(before), Judged.of_folder(now))
    if as_json:
        print_json({**dict(comparison), "verdict": comparison.verdict})
    else:
        show(comparison)
    comparison.require_flips(max_negative_flips)


def show(comparison: Comparison) -> None:
    """Print a comparison: the classes, the files, and the verdict."""
    changed = [each for each in comparison.classes if each.right_before != each.images]
    changed += [each for each in comparison.classes if each.negative_flips and each not in changed]
    changed.sort(key=lambda each: (-each.negative_flips, each.right_now / max(1, each.images)))
    console.print_records(
        changed[:MAX_CLASSES],
        {
            "class": lambda each: each.name,
            "images": lambda each: f"{each.images:,}",
            "right before": lambda each: f"{each.right_before:,}",
            "right now": lambda each: f"{each.right_now:,}",
            "right before, wrong now": lambda each: f"{each.negative_flips:,}",
        },
        left=("class",),
    )
    if len(changed) > MAX_CLASSES:
        console.say(f"{len(changed) - MAX_CLASSES} further classes changed less.")
    for file in comparison.files:
        console.say(f"{file.text}.")
    console.say(comparison.verdict)
