"""Commands about models: `nas retrain`, `nas export` and `nas verify`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.lifecycle import MaxNegativeFlips
from nas.cli.options import Conventions, Json, MovedData, RunFolder, print_json
from nas.display import console
from nas.display.formatting import format_bytes, format_number, latency_number
from nas.errors import RequestError
from nas.run.settings import KEYS

if TYPE_CHECKING:
    from nas.deploy.folder import ModelFolder
    from nas.run.judged import JudgedImages
    from nas.run.model_card import ExportedFile, ScriptCheck
    from nas.run.trained import TrainedRecord

ModelDir = Annotated[
    Path, typer.Argument(metavar="MODEL_DIR", help="Folder models/ID of a run, or a copy of it.")
]

OnDevice = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="ADDRESS",
        help="Run the files on this device: ssh://USER@HOST[?python=PATH], or adb:[SERIAL].",
        show_default=False,
    ),
]

Pick = Annotated[
    list[str] | None,
    typer.Option("--pick", help="ID of a network of the run; the option may be repeated."),
]


def retrain(
    run: RunFolder,
    pick: Pick = None,
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", help="Name of a published network; may be repeated."),
    ] = None,
    pretrained: Annotated[
        Path | None,
        typer.Option(help="File of published weights from which the one reference starts."),
    ] = None,
    conventions: Conventions = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Passes over the images; by default those of the run's plan."),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Start with newly drawn weights.")
    ] = False,
    data: MovedData = None,
    as_json: Json = False,
) -> None:
    """Train networks of a run to the end, and test each of them once.

    They start with the weights of the supernet, and learn from its largest network as well. Where
    the run has few images, each is then trained once more on all but the test images (finish.refit
    of the job), and these weights are shipped. The
    results are in the folder models of the run, and in its report. Repeat the command to continue
    an interrupted training. Published networks are trained with the same recipe, seed and epochs,
    and timed on the device of the run. With --pretrained a published network starts from its
    published weights; with --from-scratch all networks start alike.

    \b
    Example: nas retrain results/quickstart --pick jf2a
    Example: nas retrain results/quickstart --pick jf2a --reference mobilenet_v2_0.5 --from-scratch
    Example: nas retrain results/photos --reference mobilenet_v2_1.0 --pretrained mobilenet_v2.pth
    """
    from nas.opened_run import open_run

    opened = open_run(run, data)
    with console.ProgressBars() as bars:
        records = opened.retrain(
            *pick or (),
            references=reference or (),
            pretrained=pretrained,
            conventions=conventions,
            epochs=epochs,
            from_scratch=from_scratch,
            progress=bars,
        )
    if as_json:
        print_json({"run": str(run), "models": records})
        return
    _print_trained(records, opened.images)
    console.say(f"The weights are in {run / 'models'}.")


def _print_trained(records: Sequence[TrainedRecord], images: JudgedImages) -> None:
    """Print one row for each trained network: how it was trained, and its accuracies."""

    judges = images.judging_parts
    console.print_records(
        records,
        {
            "model": lambda record: record.id,
            "space": lambda record: record.space,
            "start": lambda record: record.start,
            "epochs": lambda record: record.epochs,
            "supernet": lambda record: images.text(record.supernet_accuracy, *judges),
            images.judging_name: lambda record: images.text(record.holdout.accuracy, *judges),
            "test": lambda record: images.text(record.test.accuracy, "test"),
        },
        left=("space", "start"),
    )
    for text in {each.refit.text(images.judging_name) for each in records if each.refit}:
        console.say(f"{text.capitalize()}.")


def export(
    run: RunFolder,
    pick: Pick = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Formats, separated by commas; by default that of the runtime, and onnx.",
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Export each format in int8 as well, if it has int8.")
    ] = False,
    max_accuracy_drop: Annotated[
        float | None,
        typer.Option(
            help="Largest accuracy that int8 may lose on validation images; by default that of "
            "the earlier export, or 0.005."
        ),
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            help="Bits of a weight in int8: 8, or 7 for x86 processors without VNNI instructions; "
            "what this processor needs by default."
        ),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            help=f"{KEYS['finish.min_confidence'].meaning} By default that of the earlier export, "
            "or of the job; 0 for none."
        ),
    ] = None,
    min_accuracy: Annotated[
        float | None,
        typer.Option(
            help=f"{KEYS['finish.min_accuracy'].meaning} By default that of the earlier export, "
            "or of the job."
        ),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(help="cpp: also C++ programs that classify an image, for ONNX, LiteRT, TVM."),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL_DIR",
            help="Folder of the model that the one network replaces: version.json says what "
            "changes, as nas compare does.",
        ),
    ] = None,
    model_version: Annotated[
        str | None,
        typer.Option(help="Version of the network with --parent; by default the next one."),
    ] = None,
    max_negative_flips: MaxNegativeFlips = None,
    data: MovedData = None,
    as_json: Json = False,
) -> None:
    """Export networks of a run to files, and check each file with its own runtime.

    The files are in the folder models/ID of the run, with a card, checksums and a script that
    classifies an image. A network that is not trained to the end is trained first. Files that were
    exported before are kept, and what no option says stays as the earlier export left it.

    \b
    Example: nas export results/quickstart --pick jf2a
    Example: nas export results/quickstart --pick jf2a --format onnx --int8
    Example: nas export results/quickstart --pick jf2a --min-accuracy 0.98
    Example: nas export results/quickstart --pick jf2a --example cpp
    Example: nas export results/new --pick k31b --parent results/old/models/jf2a
    """
    from nas.opened_run import open_run

    with console.ProgressBars() as bars:
        folders = open_run(run, data).export(
            *pick or (),
            formats=_format_names(formats or (), int8=int8),
            max_accuracy_drop=max_accuracy_drop,
            weight_bits=weight_bits,
            min_confidence=min_confidence,
            min_accuracy=min_accuracy,
            example=example,
            parent=parent,
            version=model_version,
            max_negative_flips=max_negative_flips,
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
        _print_exported(folder, has_example=example is not None)
    if parent is not None:
        from nas.lifecycle.version import version_of

        version = version_of(folders[0].path)
        assert version is not None
        console.say(f"Version {version.version}: {version.comparison.verdict}")


def _print_exported(folder: ModelFolder, *, has_example: bool) -> None:
    """Print the files of an exported model, and how an image is classified with them."""

    print_files(folder.card.files, folder.card.data)
    console.say(f"{folder.path}: {folder.path / 'card.md'} says more.")
    if (folder.path / "run.py").is_file():
        console.say(f"Classify an image: python {folder.path / 'run.py'} IMAGE")
    if has_example:
        console.say(f"Compile the C++ example: cmake -S {folder.path} -B BUILD")


def verify(
    model_dir: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="Folder models/ID of a run, a copy of it, or a bundle."
        ),
    ],
    public_key: Annotated[
        Path | None,
        typer.Option(help="Public key (PEM) whose owner must have signed the bundle."),
    ] = None,
    device: OnDevice = "",
    as_json: Json = False,
) -> None:
    """Check an exported model or cascade again, on this or another machine.

    The checksums come first. Then each file is run by its own runtime and compared with what torch
    computed at the export, and its accuracy is measured if the images are there; of a cascade, that
    of all its networks together. Last, run.py is run on an image file of each kind in the data.

    A bundle, or a folder with an unpacked one, may be signed: --public-key checks that first.
    With --device another device runs the files, and nothing is installed or left there.

    \b
    Example: nas verify results/quickstart/models/jf2a
    Example: nas verify jf2a-1.0.tar --public-key public.pem
    Example: nas verify results/quickstart/models/jf2a --device ssh://pi@10.0.0.7
    """
    from nas.lifecycle.bundle import open_bundle
    from nas.plans.cascade_export import CASCADE_FILE

    if public_key is not None or model_dir.is_file():
        with open_bundle(model_dir, public_key=public_key) as folder:
            _verify_model(folder, model_dir, device, as_json)
        if public_key is None and not as_json:
            console.say("The signature was not checked: --public-key names the key.")
    elif (model_dir / CASCADE_FILE).is_file():
        if device:
            raise RequestError("A cascade is verified on this machine only.")
        _verify_cascade(model_dir, as_json)
    else:
        _verify_model(model_dir, model_dir, device, as_json)


def _verify_model(folder: Path, model_dir: Path, device: str, as_json: bool) -> None:
    """Verify the folder of the model that a user named, and print what that says."""
    from nas.deploy.folder import ModelFolder
    from nas.deploy.verify import verify as verify_files

    with console.ProgressBars() as bars:
        result = verify_files(folder, device=device, progress=bars)
    if as_json:
        print_json({**vars(result), "path": model_dir})
        return
    images = ModelFolder(folder).card.data
    console.print_records(
        result.files,
        {
            "format": lambda each: each.file.format,
            "status": lambda each: f"{each.status}: {each.remedy}" if each.remedy else each.status,
            "accuracy": lambda each: images.text(each.file.accuracy, "test"),
            "difference": lambda each: format_number(each.file.difference, ".2g"),
            "allowed": lambda each: format_number(each.file.tolerance, "g"),
        },
        left=("status",),
    )
    if result.no_accuracy:
        console.say(f"The accuracy was not checked: {result.no_accuracy}")
    console.say(script_text(result.script, result.no_script))


def _verify_cascade(folder: Path, as_json: bool) -> None:
    """Verify an exported cascade, and print what that says."""
    from nas.plans.cascade_export import CASCADE, CASCADE_FILE, verify_cascade

    with console.ProgressBars() as bars:
        result = verify_cascade(folder, bars)
    if as_json:
        print_json({**vars(result), "path": folder})
        return
    images = CASCADE.read(folder / CASCADE_FILE).data
    for file in result.files:
        console.say(
            f"{file.file}: verified, difference {file.difference:.2g} of {file.tolerance:g}."
        )
    if result.accuracy is None:
        console.say(f"The accuracy was not checked: {result.no_accuracy}")
    else:
        console.say(f"Test accuracy of the cascade: {images.text(result.accuracy, 'test')}.")
    console.say(script_text(result.script, ""))


def print_files(files: Sequence[ExportedFile], images: JudgedImages) -> None:
    """Print one row for each file: accuracy, latency, memory, size, int8 layers and versions."""

    console.print_records(
        files,
        {
            "format": lambda file: file.format,
            "precision": lambda file: file.precision,
            "test accuracy": lambda file: images.text(file.accuracy, "test"),
            "ms (typical, slowest)": _latency,
            "peak memory": lambda file: (
                file.peak_memory_bytes and format_bytes(file.peak_memory_bytes)
            ),
            "size": lambda file: format_bytes(file.size_bytes),
            "int8 layers": lambda file: (
                file.quantised_layers and "{} of {}".format(*file.quantised_layers)
            ),
            "versions": lambda file: (
                file.elsewhere or ", ".join(f"{k} {v}" for k, v in file.versions.items())
            ),
        },
        left=("precision", "versions"),
    )


def _latency(file: ExportedFile) -> str:
    if file.latency is None:
        return ""
    fastest, typical, slowest = (
        latency_number(us)
        for us in (file.latency.fastest_us, file.latency.typical_us, file.latency.slowest_us)
    )
    return f"{fastest} ({typical}, {slowest}){', disturbed' * file.latency.is_disturbed}"


def script_text(script: ScriptCheck | None, reason: str) -> str:
    """Return what a verification of `run.py` compared, or why there was none."""
    if script is None:
        return f"run.py was not verified. {reason}"
    kinds = "; ".join(script.kinds)
    text = f"run.py agrees with torch on {script.images} images of the data"
    text += f" and on a file of each kind in it ({kinds})" if kinds else " (it has no image files)"
    text += f", difference {script.difference:.2g} of {script.tolerance:g}."
    if script.unchecked:
        unchecked = "; ".join(script.unchecked)
        text += f" Not verified, because the files are large or rare: {unchecked}."
    return text


def _format_names(given: Sequence[str], *, int8: bool) -> list[str] | None:
    """Return the names of formats in options that may name several each; None for the default.

    Raises RequestError if int8 is asked for and none of the formats has it.
    """
    from nas.deploy.formats import format_names

    names = [name.strip() for each in given for name in each.split(",") if name.strip()]
    if not names:
        return None
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
