"""`nas select`: the choice of a network of a run under limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nas.cli.options import Json, RunFolder, show, with_options
from nas.display.formatting import format_bytes, format_latency
from nas.errors import RequestError
from nas.figures import SELECTION_LIMITS

if TYPE_CHECKING:
    from nas.run.candidates import Candidate
    from nas.run.run import Run
    from nas.run.selection import Comparison, Option, Rule, Selection


@with_options(
    **{
        figure.limit_name: Annotated[
            int | None if figure.is_whole else float | None,
            typer.Option(help=figure.limit_meaning),
        ]
        for figure in SELECTION_LIMITS
    }
)
def select(
    run_folder: RunFolder,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Limit of a figure of the runtime, as in [search.limits]; may be repeated.",
        ),
    ] = None,
    knee: Annotated[
        bool,
        typer.Option("--knee", help="Choose the knee point, beyond which accuracy costs more."),
    ] = False,
    most_accurate: Annotated[
        bool,
        typer.Option(
            "--most-accurate", help="Choose the most accurate one, however small its lead."
        ),
    ] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Choose among the exported files, float32 and int8.")
    ] = False,
    as_json: Json = False,
    **limits: float,
) -> None:
    """Print the best network under given limits.

    This is the fastest member of the front within the limits that the images do not tell from the
    most accurate one: its accuracy is at most one standard error lower. Trained networks
    go before others, and --most-accurate chooses by accuracy alone. Networks that were trained
    count with their trained accuracy, the others with their score, whose error is multiplied by
    what training left of the errors of trained networks of the same space (the median); so do
    networks that were trained in another way than most.
    Accuracies have 95% intervals, and trained members from which no difference in accuracy is shown
    are named, too. The next best member within the limits is compared in words. If no member meets
    the limits, the command names the nearest one and exits with status 1.

    The knee point of --knee is the member that lies highest above the line between the fastest and
    the most accurate one within the limits, on a logarithmic axis of latency.

    With --int8 the choice is among the exported files of the front, of formats that have an int8
    file, each with its own accuracy and the latency that the export measured.

    \b
    Example: nas select results/quickstart --max-latency-ms 0.05
    Example: nas select results/quickstart --most-accurate
    Example: nas select results/quickstart --knee --max-file-bytes 100000
    Example: nas select results/quickstart --max-latency-ms 0.05 --int8
    """
    from nas.opened_run import open_run
    from nas.run.probes import notable
    from nas.run.selection import Limits, selection_rule

    run = open_run(run_folder)
    own = Limits(dict(map(_parse_limit, limit or [])), run.figures.values(), **limits)
    rule = selection_rule(knee=knee, most_accurate=most_accurate)
    selection = run.selection(own, int8=int8)
    option = selection.choose(rule)
    second = selection.runner_up(option)
    comparison = None if second is None else selection.compare(option, second)
    equals = [each.member for each in selection.indistinguishable(option)]
    lines = _reasons(run, option, selection, rule)
    if comparison is not None:
        lines.append(f"It is {comparison.text}.")
    estimated = "estimated at " if option.is_file_size_estimated else ""
    lines.append(f"Size of its exported file: {estimated}{format_bytes(option.file_bytes)}.")
    if option.file is None:
        lines += _network_lines(run, option, equals)
    else:
        lines += _file_lines(run, option, selection.options)
    if other := notable(run.record.probes.values()):
        lines.append(other.advice)
    show(_document(run, option, comparison, equals), "\n".join(lines), as_json)


def _parse_limit(text: str) -> tuple[str, float]:
    """Return the name and the value of a limit. Raises RequestError for another text."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise RequestError(
            f"--limit is {text!r}.", remedy="Write NAME=VALUE, such as sram_kib=256."
        ) from None


def _reasons(run: Run, option: Option, selection: Selection, rule: Rule) -> list[str]:
    """Return what was chosen and why, in lines."""
    images, member = run.images, option.member
    lines = [f"Deploy {run.path}/{option.summary(images)}"] if option.file else []
    lines += [member.summary(images), json.dumps(member.architecture.model_dump())]
    if idle := selection.limits.idle(selection.options):
        count = len(selection.options)
        lines.append(f"The limit of {', '.join(idle)} excludes none of {count} choices.")
    if images.judging_note and option.is_trained:
        lines.append(f"It is judged by {images.judging_images}. {images.judging_note}")
    record = run.trained.get(member.digest)
    if record is not None and record.refit is not None:
        lines.append(f"{record.refit.text(images.judging_name).capitalize()}.")
    if rule == "one_standard_error":
        lines.append(selection.reason(option))
    return lines


def _network_lines(run: Run, option: Option, equals: Sequence[Candidate]) -> list[str]:
    """Return what else is known of a network: its equals, its files and its latency, in lines."""
    lines = []
    if equals:
        lines.append(
            f"No difference in accuracy from {', '.join(each.id for each in equals)} is shown "
            f"by {run.images.judging_images}:"
        )
        lines += [each.summary(run.images) for each in equals]
    for model in run.models:
        if model.record.digest == option.member.digest and model.card is not None:
            files = [
                f"{file.file} {format_latency(file.latency_us)}"
                for file in model.card.files
                if file.latency_us
            ]
            lines += [f"Its files take: {', '.join(files)}."] * bool(files)
            lines += model.card.latency_notes
    if run.slowdown is not None:
        lines.append(f"Latencies are those of the fastest rounds; networks {run.slowdown.text}.")
    return lines


def _file_lines(run: Run, option: Option, options: Sequence[Option]) -> list[str]:
    """Return the other files of the network of a file, in lines."""
    others = [each for each in options if each.member == option.member and each is not option]
    own = [each.summary(run.images) for each in others]
    return ["Other files of this network:", *own] if own else []


def _document(
    run: Run, option: Option, comparison: Comparison | None, equals: Sequence[Candidate]
) -> dict[str, Any]:
    """Return the choice as JSON: the columns of its network, and what is known of the choice."""
    member, images, slowdown = option.member, run.images, run.slowdown
    document = {
        **member.model_dump(mode="json"),
        "intervals": {
            name: [each.low, each.high] for name, each in member.intervals(images).items()
        },
        "slowdown": None if slowdown is None else slowdown._asdict(),
        "judging_images": images.judging_images,
        "file_bytes": option.file_bytes,
        "is_file_size_estimated": option.is_file_size_estimated,
        "runner_up": comparison
        and {
            "id": comparison.other.member.id,
            "path": comparison.other.path,
            "accuracy_gain": comparison.accuracy_gain,
            "latency_ratio": comparison.latency_ratio,
            "is_difference_shown": None if comparison.shown is None else comparison.shown != 0,
            "text": comparison.text,
        },
    }
    if option.file is None:
        return {**document, "no_difference_shown": [each.id for each in equals]}
    return {
        **document,
        "file": {
            "path": str(run.path / option.path),
            "device": option.device,
            "latency_us": option.latency_us,
            **option.file.model_dump(mode="json"),
        },
    }
