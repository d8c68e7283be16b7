"""The page that compares several runs: `nas report RUN RUN... --out compare.html`.

The runs are of one space or of related ones, on two devices, runtimes or dtypes, or before and
after a change. The page says in what they differ, draws their fronts together, compares the
latencies of the architectures that they share, and says what a network that was chosen in one run
loses in another one.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise, permutations
from pathlib import Path
from typing import Literal

from nas import files
from nas.errors import NasError, RequestError
from nas.latency import LatencyTable
from nas.latency.timing import MEASURED
from nas.report.comparison_document import (
    Agreement,
    CommonPoint,
    ComparedPair,
    ComparedRun,
    ComparisonDocument,
    FrontPoint,
    Swap,
    Transfer,
    Transfers,
)
from nas.report.document import trained_point
from nas.report.page import render, require
from nas.run import candidates
from nas.run.candidates import Candidate, short_ids
from nas.run.run import Run
from nas.search import non_dominated
from nas.statistics import MIN_NETS_FOR_KENDALL_TAU, kendall_tau, spread

MAX_POINTS = 1500
"""Most architectures in a plot of the latencies of two runs; more could not be told apart."""

MAX_SWAPS = 5
"""Most pairs of architectures, whose order differs between two runs, that are named."""

MIN_SWAP_RATIO = 1.03
"""Smallest ratio of two latencies that is a difference: less is what timings differ by."""

PREDICTED = "predicted"

SCRIPTS = ("base", "plot", "comparison")
"""The scripts of the page, in their order."""


def build(runs: Sequence[Run], out: Path) -> Path:
    """Write the page that compares runs, and return its path.

    Raises:
        RequestError: there are fewer than two runs, one is given twice, or `out` is no place for
            the page.
        RunFolderError: a folder is no run, its architectures are not scored yet, or a file in it is
            damaged.
    """
    folders = [run.path.resolve() for run in runs]
    if len(set(folders)) < max(2, len(folders)):
        raise RequestError(
            f"A comparison needs two different runs or more; these are "
            f"{', '.join(str(run.path) for run in runs)}.",
            remedy="Name each run once: nas report RUN RUN --out compare.html.",
        )
    files.check_output_path(out, "The comparison", (".html", ".htm"))
    if out.resolve() in [folder / "report.html" for folder in folders]:
        raise RequestError(
            f"{out} is the report of a run, which the comparison would replace.",
            remedy="Choose another name: --out compare.html.",
        )
    document = compare_runs(runs)
    text = render(
        "comparison.html.j2",
        SCRIPTS,
        document,
        min_swap_ratio=MIN_SWAP_RATIO,
    )
    files.replace(out, text)
    return out


def compare_runs(runs: Sequence[Run]) -> ComparisonDocument:
    """Return the comparison of runs. Raises RunFolderError as `build` does."""
    views = [_View(run, label) for run, label in zip(runs, _labels(runs), strict=True)]
    ids = short_ids([digest for view in views for digest in view.by_digest])
    facts = [view.facts for view in views]
    names = list(facts[0])
    different = [name for name in names if len({each[name] for each in facts}) > 1]
    by_images: dict[tuple[str, str], list[int]] = {}
    for at, view in enumerate(views):
        images = view.run.images
        by_images.setdefault((images.digest, images.metric), []).append(at)
    groups = list(by_images.values())
    return ComparisonDocument(
        runs=[view.document(ids) for view in views],
        same=[name for name in names if name not in different],
        different=different,
        groups=groups,
        joint_front=_joint_fronts(views, groups),
        notes=_notes(views, groups, different),
        pairs=[
            _pair(views, first, second, ids) for first, second in combinations(range(len(views)), 2)
        ],
        transfers=[
            _transfers(views, source, target, ids)
            for group in groups
            for source, target in permutations(group, 2)
        ],
    )


def _labels(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: that of its folder, or its path if two folders have one name."""
    names = [run.path.resolve().name for run in runs]
    return [
        name if names.count(name) == 1 else str(run.path)
        for name, run in zip(names, runs, strict=True)
    ]


@dataclass
class _View:
    """A run with what the comparison needs of it.

    Attributes:
        run: the run.
        label: its name on the page.
    """

    run: Run
    label: str

    def __post_init__(self) -> None:
        require(self.run, "data", "spaces", "settings", "device", "tables")

    @cached_property
    def by_digest(self) -> dict[str, Candidate]:
        """The candidates of the run by digest."""
        return {each.digest: each for each in candidates.of_table(self.run.trials)}

    @cached_property
    def front(self) -> list[Candidate]:
        """The front of the run, the fastest first; it may be empty."""
        return candidates.of_table(self.run.front)

    @cached_property
    def facts(self) -> dict[str, str]:
        """What may differ between runs, in words."""
        record, device = self.run.record, self.run.settings.device
        assert record.device is not None
        assert record.settings is not None
        images, own = self.run.images, record.device.must_match
        counts = images.counts
        return {
            "device": own.get("processor", record.device.summary),
            "runtime": device.runtime,
            "version of the runtime": own.get("versions", "unknown"),
            "target": device.target,
            "dtype": " and ".join(device.dtypes),
            "threads": str(device.threads),
            "batch": str(device.batch),
            "images": f"{images.source} ({len(images.classes)} classes, {counts['train']} for "
            f"training, digest {images.digest})",
            "kind of accuracy": images.metric.replace("_", " "),
            "hold-out images": str(counts["holdout"]),
            "image size": f"{record.settings.image_size} pixels",
            "search spaces": ", ".join(
                f"{name} ({digest[:4]})" for name, digest in (record.spaces or {}).items()
            ),
            "epochs of the supernets": _distinct(each.epochs for each in record.supernets.values()),
            "epochs of the finalists": _distinct(each.epochs for each in self.run.trained.values()),
        }

    @cached_property
    def _tables(self) -> dict[str, LatencyTable] | str:
        """The latency tables by dtype, or why they cannot be opened."""
        try:
            return self.run.tables
        except NasError as error:
            return error.message

    def has_latency(self, digest: str) -> bool:
        """Return whether the run itself predicted or measured the latency of an architecture."""
        own = self.by_digest.get(digest)
        return own is not None and (own.measured_us or own.predicted_us) is not None

    def latency(self, candidate: Candidate, owner: Run) -> tuple[float, str] | str:
        """Return the latency of a candidate of any run in this one.

        Args:
            candidate: the candidate.
            owner: its run.

        Returns:
            Microseconds, and what they are: measured, or predicted; or why they are not known.
        """
        if self.has_latency(candidate.digest):
            own = self.by_digest[candidate.digest]
            return own.latency_us, own.basis if own.measured_us is not None else PREDICTED
        if isinstance(self._tables, str):
            return self._tables
        device = self.run.settings.device
        table = self._tables.get(candidate.dtype or "", next(iter(self._tables.values())))
        try:
            architecture = owner.architecture_of(candidate.architecture)
            return table.predict(architecture, device.batch).latency_us, PREDICTED
        except NasError as error:
            return error.message

    def document(self, ids: dict[str, str]) -> ComparedRun:
        """Return the run as a part of the page."""
        models = self.run.models
        trained = [(model.record, trained_point(model, models, self.run)) for model in models]
        return ComparedRun(
            label=self.label,
            path=str(self.run.path),
            facts=self.facts,
            metric=self.run.images.metric.replace("_", " "),
            basis=candidates.basis(self.run.trials),
            scored=sum(each.state == "complete" for each in self.by_digest.values()),
            front=[
                FrontPoint(
                    id=ids[each.digest],
                    accuracy=each.score,
                    latency_us=each.latency_us,
                    basis=each.latency_basis,
                )
                for each in self.front
            ],
            trained=[
                point.model_copy(update={"id": ids.get(record.digest, point.id)})
                for record, point in trained
                if point.latency_us is not None
            ],
        )


def _distinct(epochs: Iterable[float]) -> str:
    """Return distinct numbers of epochs in words; "none" without any."""
    return ", ".join(dict.fromkeys(f"{round(each, 1):g}" for each in epochs)) or "none"


def _notes(
    views: Sequence[_View], groups: Sequence[Sequence[int]], different: Sequence[str]
) -> list[str]:
    """Return what limits a comparison, in sentences.

    Args:
        views: the runs.
        groups: positions of the runs whose accuracies are of the same images, by group.
        different: names of the facts in which the runs differ.
    """
    notes = []
    if len(groups) > 1:
        names = " from ".join(" and ".join(views[at].label for at in group) for group in groups)
        notes.append(
            f"The images or the classes of {names} differ, so that their accuracies cannot be "
            "compared: their fronts are drawn apart, and nothing is said of what a network of one "
            "loses in the other."
        )
    if not all(
        _have_same_supernets(views[one], views[other])
        for group in groups
        for one, other in pairwise(group)
    ):
        notes.append(
            "The scores come from supernets that were trained apart. A difference of two fronts is "
            "one of these trainings, too."
        )
    if "dtype" in different:
        notes.append(
            "A run in int8 alone scores networks with float32 weights. What int8 costs in accuracy "
            "is not in these scores; the exported files of a run show it."
        )
    estimated = [view.label for view in views if candidates.basis(view.run.trials) != MEASURED]
    if estimated:
        notes.append(
            f"The latencies of {' and '.join(estimated)} are estimates of a model of the device, "
            "which must not be compared with measured ones."
        )
    notes += [f"The front of {view.label} is empty." for view in views if not view.front]
    return notes


def _have_same_supernets(one: _View, other: _View) -> bool:
    """Return whether the scores of two runs come from the same supernets, corrected alike.

    Supernets that were trained apart differ in the digits of their accuracies.
    """
    first, second = one.run.record, other.run.record
    return (first.supernets, first.correction) == (second.supernets, second.correction)


def _joint_fronts(views: Sequence[_View], groups: Sequence[Sequence[int]]) -> list[int]:
    """Return how many members each run has on the joint front of its group.

    It is the front of latency and score.
    """
    counts = [0] * len(views)
    for group in groups:
        members = [(at, member) for at in group for member in views[at].front]
        for index in non_dominated([(each.latency_us, -each.score) for _, each in members]):
            counts[members[index][0]] += 1
    return counts


def _pair(views: Sequence[_View], first: int, second: int, ids: dict[str, str]) -> ComparedPair:
    """Compare the latencies of the architectures that two runs share."""
    one, other = views[first], views[second]
    fronts = [{each.digest for each in view.front} for view in (one, other)]
    points = []
    for digest in {**one.by_digest, **other.by_digest}:
        is_on_front = digest in fronts[0], digest in fronts[1]
        if not any(is_on_front) and not (one.has_latency(digest) and other.has_latency(digest)):
            continue
        owner = one if digest in one.by_digest else other
        one_us, other_us = (
            view.latency(owner.by_digest[digest], owner.run) for view in (one, other)
        )
        if not isinstance(one_us, str) and not isinstance(other_us, str):
            points.append(
                CommonPoint(
                    id=ids[digest],
                    us=(one_us[0], other_us[0]),
                    basis=(one_us[1], other_us[1]),
                    is_on_front=is_on_front,
                )
            )
    points.sort(key=lambda point: point.us)
    members = [point for point in points if any(point.is_on_front)]
    others = [point for point in points if not any(point.is_on_front)]
    agreements = [_agreement(one, other, basis) for basis in ("measured", "predicted")]
    return ComparedPair(
        first=first,
        second=second,
        common=len(points),
        points=[*spread(others, max(0, MAX_POINTS - len(members))), *members],
        agreements=[each for each in agreements if each],
        swaps=_swaps(members),
    )


def _agreement(
    one: _View, other: _View, basis: Literal["measured", "predicted"]
) -> Agreement | None:
    """Compare the order of the architectures that have a latency of one kind in both runs.

    None for fewer than `MIN_NETS_FOR_KENDALL_TAU` architectures.
    """
    name = f"{basis}_us"
    both = [
        (getattr(each, name), getattr(other.by_digest[digest], name))
        for digest, each in one.by_digest.items()
        if digest in other.by_digest
    ]
    known = [(a, b) for a, b in both if a is not None and b is not None]
    if len(known) < MIN_NETS_FOR_KENDALL_TAU:
        return None
    tau = kendall_tau(*zip(*known, strict=True))
    return Agreement(basis=basis, networks=len(known), kendall_tau=tau)


def _swaps(points: Sequence[CommonPoint]) -> list[Swap]:
    """Return the pairs whose order differs most, no architecture in two of them.

    A pair's difference is the smaller one of both runs.
    """
    swaps = []
    for a, b in combinations(points, 2):
        fast, slow = (a, b) if a.us[0] < b.us[0] else (b, a)
        ratios = slow.us[0] / fast.us[0], fast.us[1] / slow.us[1]
        if min(ratios) >= MIN_SWAP_RATIO:
            is_measured = {*a.basis, *b.basis} == {MEASURED}
            swaps.append(Swap(ids=(fast.id, slow.id), ratios=ratios, is_measured=is_measured))
    chosen: list[Swap] = []
    for swap in sorted(swaps, key=lambda swap: -min(swap.ratios)):
        if not any({*swap.ids} & {*each.ids} for each in chosen):
            chosen.append(swap)
    return chosen[:MAX_SWAPS]


def _transfers(views: Sequence[_View], source: int, target: int, ids: dict[str, str]) -> Transfers:
    """Return what the members of the front of one run lose in another run.

    Args:
        views: the runs.
        source, target: positions of the two.
        ids: IDs by digest.
    """
    own, other = views[source], views[target]
    is_same_judge = _have_same_supernets(own, other)
    rows, reasons = [], []
    for member in own.front:
        latency = other.latency(member, own.run)
        if isinstance(latency, str):
            reasons.append(latency)
            continue
        us, basis = latency
        judged = other.by_digest.get(member.digest)
        is_judged = judged is not None and judged.state == "complete"
        accuracy = judged.score if judged and is_judged else member.score if is_same_judge else None
        rival = equal = None
        if accuracy is not None:
            not_slower = [each for each in other.front if each.latency_us <= us]
            rival = max(not_slower, key=lambda each: each.score, default=None)
            as_accurate = [each for each in other.front if each.score >= accuracy]
            equal = min(as_accurate, key=lambda each: each.latency_us, default=None)
        rows.append(
            Transfer(
                id=ids[member.digest],
                own_us=member.latency_us,
                us=us,
                basis=basis,
                accuracy=accuracy,
                rival=None if rival is None else ids[rival.digest],
                lost_accuracy=None if rival is None else rival.score - (accuracy or 0),
                equal=None if equal is None else ids[equal.digest],
                latency_ratio=None if equal is None else us / equal.latency_us,
            )
        )
    return Transfers(
        source=source,
        target=target,
        rows=rows,
        unknown=len(reasons),
        reason=reasons[0] if reasons else "",
        text=_losses(own, other, rows),
    )


def _losses(own: _View, other: _View, rows: Sequence[Transfer]) -> str:
    """Return what the members of a front lose in another run, in words."""
    text = (
        f"{len(rows)} of the {len(own.front)} networks on the front of {own.label} have a known "
        f"latency in {other.label}."
    )
    predicted = sum(row.basis == PREDICTED for row in rows)
    agreement = candidates.latency_agreement(other.run.trials)
    if predicted:
        error = f", which errs by {agreement.mape:.1%} in the mean there" if agreement else ""
        text += f" Of these latencies, {predicted} are predicted by its latency table{error}."
    lost = [(row.lost_accuracy, row.id) for row in rows if row.lost_accuracy is not None]
    if lost:
        middle, (most, name) = 100 * statistics.median(each for each, _ in lost), max(lost)
        text += (
            f" Beside the most accurate network of its front that is not slower, they lose "
            f"{middle:.1f} points of accuracy in the median, and {100 * most:.1f} at most ({name})."
        )
    longer = [(row.latency_ratio, row.id) for row in rows if row.latency_ratio is not None]
    if longer:
        middle, (most, name) = statistics.median(each for each, _ in longer), max(longer)
        text += (
            f" Beside its fastest network that is as accurate, they take {100 * (middle - 1):.0f}% "
            f"more time in the median, and {100 * (most - 1):.0f}% at most ({name})."
        )
    faster = sum(row.rival is None and row.accuracy is not None for row in rows)
    if faster:
        text += f" {faster} of them are faster there than its whole front."
    return text
