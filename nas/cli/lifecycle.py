"""Commands about shipped models: `nas compare`, `nas drift`, `nas federate` and `nas bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import Json, Plot, check_plot, print_json
from nas.display import console
from nas.display.formatting import format_number
from nas.errors import RequestError

if TYPE_CHECKING:
    from nas.lifecycle.comparison import Comparison
    from nas.lifecycle.drift import Drift

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
    from nas.lifecycle.comparison import Judged, check_limit, compare_models

    check_limit(max_negative_flips)
    models = [Judged.of_folder(each) for each in (before, now)]
    if models[0].name == models[1].name:  # Two versions of a network.
        pairs = zip(models, (before, now), strict=True)
        models = [model._replace(name=str(path)) for model, path in pairs]
    comparison = compare_models(*models)
    if as_json:
        print_json({**dict(comparison), "verdict": comparison.verdict})
    else:
        show(comparison)
        if any(each.card is not None and each.card.refit for each in models):
            console.say(
                "Refitted models answered the images before their refit, which taught them."
            )
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


def drift(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of the deployed model.")],
    log: Annotated[Path, typer.Argument(metavar="LOG", help="What run.py --log FILE wrote.")],
    max_psi: Annotated[
        float, typer.Option(help="Population stability index from which on something moved.")
    ] = 0.05,
    last: Annotated[
        int | None, typer.Option(help="Number of lines from the end that count; by default all.")
    ] = None,
    uncertain: Annotated[
        int,
        typer.Option(
            help="Name so many images whose label would be worth most: by the paths that run.py "
            "--log-paths wrote, or else by lines of the log."
        ),
    ] = 0,
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Say whether a deployed model still sees images like those of its training.

    A model that runs as run.py --log FILE appends a line for each image: the class, the confidence,
    brightness, contrast and sharpness, and no image. The command compares these lines with the
    reference in the model folder, and estimates the accuracy from the confidences. The exit status
    is 1 if something moved: a test shows it, and its population stability index is above --max-psi;
    or if no image could be read.

    \b
    Example: nas drift results/quickstart/models/jf2a field.jsonl
    Example: nas drift results/quickstart/models/jf2a field.jsonl --last 1000 --uncertain 20
    """
    from nas.lifecycle.drift import find_drift

    check_plot(plot)
    result = find_drift(model, log, max_psi=max_psi, last=last, uncertain=uncertain)
    if plot is not None:
        from nas.lifecycle.drift_figure import draw_drift

        draw_drift(model, log, result, last, plot)
    if as_json:
        print_json({**dict(result), "moved": result.moved, "verdict": result.verdict})
    else:
        _show_drift(result)
    if result.moved:
        raise typer.Exit(1)


def federate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of an exported model.")],
    out: Annotated[Path, typer.Option(help="New folder, of the app or of the new model.")],
    clients: Annotated[
        int | None, typer.Option(help="Write an app whose server waits for so many clients.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Take these weights back, which the server stored.")
    ] = None,
    max_negative_flips: MaxNegativeFlips = None,
    as_json: Json = False,
) -> None:
    """Fine-tune an exported model on images that stay on their devices, with Flower.

    With --clients, the command writes an app for Flower from the files of format torch: a server
    averages the weights that its clients send, each of which trains on a folder of its own. The app
    runs without this package. With --weights, what its server stored becomes a new model folder:
    the same formats are quantised and verified as by nas export, and compared with the model on the
    images that judged it.

    \b
    Example: nas federate old/jf2a --clients 5 --out app
    Example: nas federate old/jf2a --weights app/federated.safetensors --out new
    """
    if (clients is None) == (weights is None):
        raise RequestError(
            "An app is written, or weights are taken back.",
            remedy="Give either --clients or --weights.",
        )
    if clients is not None and max_negative_flips is not None:
        raise RequestError(
            "An app has no limit of negative flips.", remedy="Give it with --weights."
        )
    from nas.deploy.folder import ModelFolder
    from nas.lifecycle.federation import take_back, write_app

    if clients is not None:
        write_app(model, clients, out)
        if as_json:
            print_json({"path": out})
        else:
            console.say(f"{out}: start it with start.py, and set its options in pyproject.toml.")
        return
    assert weights is not None
    with console.ProgressBars() as bars:
        bars.begin("take back", "step")
        version = take_back(
            model, weights, out, max_negative_flips=max_negative_flips, progress=bars.advance
        )
    if as_json:
        print_json({"path": out, "version": version.version, **dict(version.comparison)})
        return
    show(version.comparison)
    if threshold := ModelFolder(out).card.threshold:
        console.say(f"The threshold: {threshold.summary}.")
    console.say(f"Version {version.version}: {out}")


def _show_drift(drift: Drift) -> None:
    """Print what a log says."""
    console.print_records(
        drift.measures,
        {
            "measure": lambda each: each.name,
            "reference": lambda each: format_number(each.reference, ".3f"),
            "field": lambda each: format_number(each.field, ".3f"),
            "stability index": lambda each: f"{each.psi:.3f}",
            "p-value": lambda each: f"{each.p_value:.2g}",
            "moved": lambda each: "yes" if each.moved else "no",
        },
        left=("measure",),
    )
    if drift.unsure is not None and drift.unsure_reference is not None:
        console.say(
            f"{drift.unsure:.1%} of the answers are unsure; of the reference, "
            f"{drift.unsure_reference:.1%}."
        )
    if drift.unreadable or drift.damaged:
        console.say(
            f"{drift.unreadable:,} images could not be read, and {drift.damaged:,} lines of the "
            "log are not whole."
        )
    for name in drift.uncertain:
        console.say(f"label: {name}")
    console.say(drift.verdict)


def bundle(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of an exported model.")],
    out: Annotated[Path, typer.Option(help="File of the bundle, which ends in .tar.")],
    key: Annotated[
        Path | None,
        typer.Option(help="Private key on an elliptic curve (PEM), which signs the bundle."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write an exported model as one file for its devices.

    The bundle has the files of the model, their digests, a bill of materials (CycloneDX) and
    install.py, which a device runs. With --key it is signed in the format of OpenSSF Model Signing;
    nothing is sent anywhere. Check it with: nas verify BUNDLE --public-key KEY

    \b
    Example: nas bundle results/quickstart/models/jf2a --out jf2a-1.0.tar
    Example: nas bundle results/quickstart/models/jf2a --out jf2a-1.0.tar --key private.pem
    """
    from nas.lifecycle.bundle import write_bundle

    manifest = write_bundle(model, out, key=key)
    if as_json:
        print_json({"path": out, "is_signed": key is not None, **manifest})
        return
    signed = "signed" if key is not None else "not signed"
    count = len(manifest["files"])
    console.say(
        f"{out}: version {manifest['version']} of {manifest['name']}, {count} files, {signed}."
    )
    console.say(
        f"On a device: tar -xf {out.name} install.py; python3 install.py {out.name} --to DIR"
        f"{' --public-key KEY' if key is not None else ''}"
    )
