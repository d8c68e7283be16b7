"""`ReportDocument`: the JSON behind the page of a run.

The page holds it as `<script type="application/json" id="report">`. Accuracies are fractions, and
latencies are in microseconds. A value that is not known is null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Annotated, Any, Literal, Self, get_args

import pandas as pd
from pydantic import Field

from nas.errors import NasError
from nas.figures import SELECTION_LIMITS, Figure
from nas.files.documents import Count, Document, Fraction, Name, Positive
from nas.report.cascades import CascadeSection, cascade_section
from nas.report.choices import ChoicesSection, choices_section
from nas.report.progress import ProgressSection, progress_section
from nas.report.times import TimesSection, times_section
from nas.report.trust import TrustSection, trust_section
from nas.run import candidates
from nas.run.models import FilePoint, RunModel, recipe_names
from nas.run.objectives import device_figures
from nas.run.run import Run
from nas.run.selection import REASONS, Option, Selection, knee
from nas.space import Architecture
from nas.supernet.ranking_records import SpaceRanking

Range = tuple[float, float]
"""The ends of a 95% interval."""

MAX_COMPARED = 100
"""Most members of a front of which each two are compared in words: 10,000 sentences have 1.5 MB."""

Index = Annotated[int, Field(ge=0)]

Style = Literal["solid", "dashed", "dotted"]
"""How a line is drawn."""


class Networks(Document):
    """All architectures that the search scored, as columns of equal length.

    Attributes:
        id: their IDs.
        space: position of the space of each in `ReportDocument.spaces`.
        accuracy: score that the search maximised.
        predicted_us: latency predicted by the latency table.
        measured_us: latency of the whole network.
        costs: MACs, parameters, peak memory and figures of the runtime, and the predicted latencies
            on further devices, by column name; see `ReportDocument.axes`.
    """

    id: list[str]
    space: list[Index]
    accuracy: list[float | None]
    predicted_us: list[float | None]
    measured_us: list[float | None]
    costs: dict[str, list[float | None]]


class Axis(Document):
    """A figure of a network that a plot shows or a limit bounds, see `nas.figures.Figure`.

    Attributes:
        column: name of the column in `Networks.costs`, or of the figure.
        label: its name and unit.
        scale: what a value is multiplied by to be shown in that unit.
        is_maximised: whether more is better.
    """

    column: Name
    label: str
    scale: Positive = 1.0
    is_maximised: bool = False

    @classmethod
    def of(cls, figure: Figure, **fields: Any) -> Self:
        """Return the axis of a figure."""
        return cls(
            column=figure.name,
            label=figure.label,
            scale=figure.scale,
            is_maximised=figure.is_maximised,
            **fields,
        )


class Limit(Axis):
    """A limit that the page has a slider for.

    Attributes:
        name: name of the limit, as an option of `nas select`.
        is_whole: whether it is a whole number.
    """

    name: Name
    is_whole: bool


class Block(Document):
    """A block of a network, as it is drawn.

    Attributes:
        name: its name in the space: `stage1.0`.
        choices: what was chosen for it: `kernel 5, expand 6`.
        shape: channels, height and width of its output.
        macs, params: its counts.
    """

    name: Name
    choices: str
    shape: tuple[Count, Count, Count]
    macs: Count
    params: Count


class NetworkPoint(Document):
    """A network as a point of a plot of accuracy and latency.

    Attributes:
        id: its ID, or the name of a published network.
        accuracy: its accuracy.
        latency_us: measured latency, or the predicted one; null if neither is known.
    """

    id: str
    accuracy: Fraction
    latency_us: Positive | None


class JudgedPoint(NetworkPoint):
    """A network whose accuracy is that after training, reached or expected.

    Attributes:
        training: what its accuracy is, in words; only equal trainings are compared.
        interval: 95% interval of this accuracy from the number of images that judge networks.
    """

    training: str
    interval: Range


class Member(JudgedPoint):
    """A network that can be chosen: a member of the front.

    Its accuracy is that by which it is compared, see `nas.run.selection.expected_accuracies`.

    Attributes:
        dtype: type of its weights, if the search chose it.
        is_trained: whether it was trained to the end.
        is_expected: whether its accuracy is an expected accuracy, and not one that was measured.
        standalone: range of the accuracies that 95% of such networks reach in standalone training,
            from the ranking of the supernet; null without one.
        latency_range_us: limits of its latency, see `Candidate.latency_range_us`.
        latency_basis: which of the two, and what makes it unsure.
        not_told_from: members whose latencies the timings do not tell from its own.
        equals: members that are no more accurate, and that the images do not tell from it, see
            `nas.run.selection.Selection.equals_of`.
        comparisons: how it differs from other members, in words, by their IDs: all of them if there
            are at most `MAX_COMPARED`.
        file_bytes: size of its file.
        is_file_size_estimated: whether that is an estimate, as no file was exported.
        choices: what was chosen for the whole network, beside its blocks.
        blocks: its blocks in order; empty if the space cannot be loaded any more.
        files: exported files, the fastest first.
    """

    latency_us: Positive
    dtype: str | None
    is_trained: bool
    is_expected: bool
    standalone: Range | None
    latency_range_us: tuple[Positive, Positive]
    latency_basis: str
    not_told_from: list[str]
    equals: list[str]
    comparisons: dict[str, str]
    file_bytes: Count
    is_file_size_estimated: bool
    choices: str
    blocks: list[Block]
    files: list[str]


class TrainedPoint(JudgedPoint):
    """A network that was trained to the end: one of the run's, or a published one.

    Attributes:
        space: name of its space.
        is_published: whether it is a published network.
    """

    space: str
    is_published: bool


class PrecisionPair(Document):
    """The files of a trained network in float32 and in int8, timed as the front was.

    Attributes:
        id: ID of the network.
        formats: their formats.
        latency_us: the latency of each.
        accuracy: the accuracy of each on the images that judge trained networks.
    """

    id: str
    formats: tuple[str, str]
    latency_us: tuple[Positive, Positive]
    accuracy: tuple[Fraction, Fraction]


class Line(Document):
    """A line of a plot.

    Attributes:
        name: what it shows.
        x, y: its points.
        style: how it is drawn.
        space: position of the space whose colour it has; null for none.
    """

    name: str
    x: list[float]
    y: list[float]
    style: Style = "solid"
    space: Index | None = None


class RankedNetwork(Document):
    """A network that `nas supernet rank` trained alone.

    Attributes:
        space: position of its space.
        supernet_accuracy, standalone_accuracy: both accuracies.
    """

    space: Index
    supernet_accuracy: Fraction
    standalone_accuracy: Fraction


class ProbeLine(Document):
    """A linear probe that the networks of the run are held against.

    Attributes:
        network: the published network.
        accuracy: accuracy on the images that judge trained networks.
    """

    network: Name
    accuracy: Fraction


class ReportDocument(Document):
    """The JSON behind the page of a run.

    Attributes:
        name: name of the run.
        folder: path of its folder, as it was given.
        spaces: names of the searched spaces.
        metric: what accuracies are.
        judging_images: the images that judge trained networks, in words.
        basis: `measured`, or by what latencies were estimated.
        networks: all scored architectures.
        axes: what a plot can show on its horizontal axis beside latency.
        limits: the limits that have a slider.
        front: IDs of the members of the front, the fastest first.
        members: what can be chosen, in the order of `front`.
        knee: ID of the knee of the front, see `nas.run.selection.knee`; null without one.
        trained: networks that were trained to the end.
        probes: linear probes of published networks whose weights supernets start from.
        reasons: why the pick is chosen within limits, see `nas.run.selection.REASONS`; with places
            for `{name}`, `{count}`, `{best}` and `{trained}`, which is "trained " or nothing.
        pairs: float32 and int8 files of trained networks.
        ranked: networks that were trained alone to check the supernets.
        training_loss, training_accuracy, hypervolume, coverage: lines of the plots.
        times: where the time of the networks goes; null if none can be chosen.
        cascades: the cascades of the trained networks; null if no two can be in one.
        choices: what good networks share; null if no network was
            scored, or a space cannot be loaded.
        trust: what limits the conclusions from all of this.
        progress: what is still missing; null if the job has ended.
    """

    schema_version: Literal[5] = Field(default=5, alias="schema")
    name: str
    folder: str
    spaces: list[Name]
    metric: str
    judging_images: str
    basis: str
    networks: Networks
    axes: list[Axis]
    limits: list[Limit]
    front: list[str]
    members: list[Member]
    knee: str | None
    trained: list[TrainedPoint]
    probes: list[ProbeLine]
    reasons: dict[str, str]
    pairs: list[PrecisionPair]
    ranked: list[RankedNetwork]
    training_loss: list[Line]
    training_accuracy: list[Line]
    hypervolume: list[Line]
    coverage: list[Line]
    times: TimesSection | None
    cascades: CascadeSection | None
    choices: ChoicesSection | None
    trust: TrustSection
    progress: ProgressSection | None


def report_document(run: Run) -> ReportDocument:
    """Return the document of a run, from the files in its folder.

    Raises RunFolderError or CheckpointError for a damaged file.
    """
    rows, models, ranking, images = run.trials_so_far, run.models, run.ranking, run.images
    spaces = list(run.record.spaces or {})
    rankings = ranking.spaces if ranking else {}
    complete = rows[rows["state"] == "complete"]
    axes = _axes(rows, run)
    options = run.options() if len(run.front) else []
    selection = Selection(options, images, models)
    return ReportDocument(
        name=run.record.name,
        folder=str(run.path),
        spaces=spaces,
        metric=images.metric.replace("_", " "),
        judging_images=images.judging_images,
        basis=candidates.basis(rows),
        networks=Networks(
            id=complete["id"].tolist(),
            space=[spaces.index(space) for space in complete["space"]],
            accuracy=_rounded(candidates.score(complete), 6),
            predicted_us=_rounded(complete["predicted_us"], 3),
            measured_us=_rounded(complete["measured_us"], 3),
            costs={axis.column: _rounded(complete[axis.column], 3) for axis in axes},
        ),
        axes=axes,
        limits=[
            Limit.of(figure, name=figure.limit_name, is_whole=figure.is_whole)
            for figure in dict.fromkeys([*SELECTION_LIMITS, *run.figures.values()])
        ],
        front=[option.member.id for option in options],
        members=[_member(option, selection, run, models, rankings) for option in options],
        knee=None if (middle := knee(options)) is None else middle.member.id,
        trained=[trained_point(model, models, run) for model in models],
        probes=[
            ProbeLine(network=each.network, accuracy=each.own.judged)
            for each in run.record.probes.values()
        ],
        reasons={
            kind: sentence.replace("{images}", images.judging_images)
            for kind, sentence in REASONS.items()
        },
        pairs=[
            PrecisionPair(
                id=name,
                formats=(first.file.format, second.file.format),
                latency_us=(first.latency_us, second.latency_us),
                accuracy=(first.accuracy, second.accuracy),
            )
            for name, pairs in precision_pairs(run, models).items()
            for first, second in pairs
        ],
        ranked=[
            RankedNetwork(
                space=spaces.index(space),
                supernet_accuracy=network.supernet_accuracy,
                standalone_accuracy=network.standalone_accuracy,
            )
            for space, own in rankings.items()
            if space in spaces
            for network in own.networks
        ],
        training_loss=_training_lines(run, spaces, ["loss"]),
        training_accuracy=_training_lines(
            run, spaces, ["accuracy_largest", "accuracy_random", "accuracy_smallest"]
        ),
        hypervolume=_hypervolume(run),
        coverage=_coverage(models, spaces),
        times=times_section(run),
        cascades=cascade_section(run),
        choices=choices_section(run),
        trust=trust_section(run),
        progress=progress_section(run),
    )


def precision_pairs(
    run: Run, models: Sequence[RunModel]
) -> dict[str, list[tuple[FilePoint, FilePoint]]]:
    """Return the float32 and int8 files that were timed as the front was, by their network.

    Files are timed on the processor that exports them, for one image. So they have a place on the
    plot of the front only if the front was timed there, with the same runtime.

    Args:
        run: the run.
        models: its trained networks.
    """
    device, settings = run.record.device, run.settings.device

    def is_timed_alike(point: FilePoint) -> bool:
        return (
            device is not None
            and (latency := point.file.latency) is not None
            and point.device == device.must_match.get("processor")
            and point.file.runtime == settings.runtime
            and (latency.threads, 1) == (settings.threads, settings.batch)
        )

    return {
        model.record.id: [pair for pair in model.precision_pairs if is_timed_alike(pair[0])]
        for model in models
    }


def _rounded(values: pd.Series, digits: int) -> list[float | None]:
    """Return values rounded to so many digits, null where one is missing."""
    known = values.astype(float)
    return [None if pd.isna(value) else round(value, digits) for value in known]


def _axes(rows: pd.DataFrame, run: Run) -> list[Axis]:
    """Return the axes of the columns of a table of candidates, beside latency and accuracy."""
    figures = [*device_figures(run.settings.search), *run.figures.values()]
    return [Axis.of(figure) for figure in figures if figure.name in rows]


def _member(
    option: Option,
    selection: Selection,
    run: Run,
    models: Sequence[RunModel],
    rankings: Mapping[str, SpaceRanking],
) -> Member:
    """Return an option of the front as the page shows it."""
    member, images = option.member, run.images
    others = [each for each in selection.options if each is not option]
    model = next((each for each in models if each.record.digest == member.digest), None)
    interval = option.interval(images)
    ranking = rankings.get(member.space)
    try:
        blocks = blocks_of(run.architecture_of(member.architecture))
    except NasError:  # The run's copy of its space cannot be loaded any more.
        blocks = []
    own = tuple(f"{block.name}." for block in blocks)
    of_no_block = {
        name: chosen
        for name, chosen in member.architecture.choices.items()
        if not name.startswith(own)
    }
    return Member(
        id=member.id,
        dtype=member.dtype,
        is_trained=model is not None,
        training=_training(model, models, option),
        accuracy=option.accuracy,
        is_expected=not option.is_trained,
        interval=(interval.low, interval.high),
        standalone=None if ranking is None else ranking.standalone_range(member.score),
        latency_us=option.latency_us,
        latency_range_us=member.latency_range_us,
        latency_basis=member.latency_basis,
        not_told_from=[each.name for each in others if not member.is_told_from(each.member)],
        equals=[each.name for each in selection.equals_of(option)],
        comparisons={
            each.name: selection.compare(option, each).text
            for each in others
            if len(selection.options) <= MAX_COMPARED
        },
        file_bytes=option.file_bytes,
        is_file_size_estimated=option.is_file_size_estimated,
        choices=_choices_text(of_no_block),
        blocks=blocks,
        files=[f"{model.folder}/{file.file}" for file in model.files] if model else [],
    )


def _training(
    model: RunModel | None, models: Sequence[RunModel], option: Option | None = None
) -> str:
    """Return in words what the accuracy of a trained network or of a member is."""
    if model is None:
        return "expected: not trained yet"
    text = f"trained for {recipe_names(models)[model.record.recipe]}"
    if option is not None and option.accuracy != option.member.trained_accuracy:
        return f"expected: it was {text}, unlike the others"
    return text


def blocks_of(architecture: Architecture) -> list[Block]:
    """Return the blocks of a network as they are drawn."""
    return [
        Block(
            name=name,
            choices=_choices_text(
                {
                    # A stage of one block has its choices, and those of its block 0.
                    choice.removeprefix(f"{name}.").removeprefix("0."): option
                    for choice, option in architecture.choices.items()
                    if choice.startswith(f"{name}.")
                }
            ),
            shape=block.shape,
            macs=block.macs,
            params=block.params,
        )
        for block, name in architecture.graph.blocks
    ]


def _choices_text(choices: Mapping[str, Any]) -> str:
    """Return choices in words: `kernel 5, expand 6`."""
    return ", ".join(f"{name} {option}" for name, option in choices.items())


def trained_point(model: RunModel, models: Sequence[RunModel], run: Run) -> TrainedPoint:
    """Return a trained network of a run as a point of a plot; `models` are all of the run."""
    record = model.record
    interval = run.images.interval(record.holdout.accuracy, *run.images.judging_parts)
    assert interval is not None
    return TrainedPoint(
        id=record.id,
        space=record.space,
        is_published=model.is_published,
        training=_training(model, models),
        accuracy=record.holdout.accuracy,
        interval=(interval.low, interval.high),
        latency_us=model.latency_us,
    )


def _training_lines(run: Run, spaces: Sequence[str], fields: Sequence[str]) -> list[Line]:
    """Return fields of the training logs of the supernets over the progress, in percent."""
    lines = []
    for space, log in run.training_logs.items():
        for field, style in zip(fields, get_args(Style), strict=False):
            values = [getattr(row, field) for row in log]
            if len(log) > 1 and None not in values:
                subnet = field.removeprefix("accuracy_")
                lines.append(
                    Line(
                        name=space if field == "loss" else f"{space}, {subnet}",
                        # A training of a given time estimates its steps anew as it goes on.
                        x=[round(100 * row.step / log[-1].steps, 2) for row in log],
                        y=[round(value, 5) for value in values],
                        style=style,
                        space=spaces.index(space),
                    )
                )
    return lines


def _hypervolume(run: Run) -> list[Line]:
    points = {r.completed: r.hypervolume for r in run.history if r.hypervolume is not None}
    if not points:
        return []
    return [Line(name="hypervolume", x=[float(each) for each in points], y=list(points.values()))]


def _coverage(models: Sequence[RunModel], spaces: Sequence[str]) -> list[Line]:
    """Return the accuracy of trained networks on the images that they answer, over their share."""
    lines = []
    for model, style in zip(models, cycle(get_args(Style)), strict=False):
        rows = model.record.calibration.coverage
        points = {100 * row.answered: row.accuracy for row in rows if row.accuracy is not None}
        if points:
            space = model.record.space
            lines.append(
                Line(
                    name=model.record.id,
                    x=list(points),
                    y=list(points.values()),
                    style=style,
                    space=spaces.index(space) if space in spaces else None,
                )
            )
    return lines
