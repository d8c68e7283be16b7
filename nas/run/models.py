"""The trained models of a run: what training gave, and what was exported."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from nas.run import candidates
from nas.run.answers import ANSWERS, ANSWERS_FILE, EXIT_ANSWERS_FILE, Answers
from nas.run.candidates import Candidate
from nas.run.model_card import CARD, CARD_FILE, ExportedFile, ModelCard
from nas.run.trained import MODELS_FOLDER, TrainedBy, TrainedRecord, read_trained


class FilePoint(NamedTuple):
    """An exported file as a point of a front.

    Attributes:
        file: the file.
        accuracy: its accuracy on the images that judge trained networks.
        latency_us: its latency in its own runtime, in microseconds.
        device: processor that this latency is for.
    """

    file: ExportedFile
    accuracy: float
    latency_us: float
    device: str


@dataclass(frozen=True)
class RunModel:
    """A trained network of a run.

    Attributes:
        record: how it was trained, and its accuracies.
        card: card of its exported files; None if nothing was exported.
        candidate: its row among the candidates; None for a published network.
        measured_us: latency of the whole network in microseconds; None if it was not timed.
        answers: what it answered on the images that judge it; None if that is not known.
        exit_answers: what its exit answered on them; None if it has no exit.
        export_errors: why formats were not exported, by format; "all" stands for all of them.
    """

    record: TrainedRecord
    card: ModelCard | None
    candidate: Candidate | None
    measured_us: float | None = None
    answers: Answers | None = None
    exit_answers: Answers | None = None
    export_errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Path of the model's folder from the run folder."""
        return f"{MODELS_FOLDER}/{self.record.id}"

    @property
    def is_published(self) -> bool:
        """Whether it is a published network, whose name is no beginning of its digest."""
        return not self.record.digest.startswith(self.record.id)

    @property
    def latency_us(self) -> float | None:
        """Measured latency, or the predicted one; None if neither is known."""
        if self.measured_us is not None or self.candidate is None:
            return self.measured_us
        return self.candidate.predicted_us

    def difference(self, other: RunModel, *, is_balanced: bool) -> int | None:
        """Return whether a paired test shows that this model is more accurate than another one.

        Args:
            other: another model of the run.
            is_balanced: whether all classes count alike, rather than all images.

        Returns:
            1 if this model is more accurate, -1 if the other one is, and 0 if no difference is
            shown; None if they were trained in different ways, or were not compared on the same
            images.
        """
        own, others = self.answers, other.answers
        if own is None or others is None or own.counts != others.counts:
            return None
        if self.record.recipe != other.record.recipe:
            return None
        return own.difference(others, is_balanced=is_balanced)

    def advantage(self, other: RunModel, *, is_balanced: bool) -> str:
        """Return why this model takes the place of another one that is not better in anything.

        It is a clause without its subject, such as "is more accurate". See `difference`.
        """
        images = other.record.holdout.images
        match self.difference(other, is_balanced=is_balanced):
            case 1:
                return f"is more accurate, as {images} images show, and was measured no worse"
            case 0 | -1:
                return (
                    "was measured no worse in any objective, and no difference of the accuracies "
                    f"is shown by {images} images"
                )
        return "was measured no worse in any objective"

    @property
    def supernet_error(self) -> float | None:
        """Supernet's accuracy minus the trained network's on the same images; None without one."""
        if self.record.supernet_accuracy is None:
            return None
        return self.record.supernet_accuracy - self.record.holdout.accuracy

    @property
    def files(self) -> tuple[ExportedFile, ...]:
        """The exported files, the fastest first; those that were not timed come last."""
        files = self.card.files if self.card else ()
        return tuple(sorted(files, key=lambda f: f.latency_us or math.inf))

    @property
    def points(self) -> list[FilePoint]:
        """The exported files whose accuracy and latency were measured, as in `files`."""
        return [
            FilePoint(file, file.holdout_accuracy, file.latency_us, self.card.device)
            for file in self.files
            if self.card is not None
            and file.holdout_accuracy is not None
            and file.latency_us is not None
        ]

    @property
    def precision_pairs(self) -> list[tuple[FilePoint, FilePoint]]:
        """The points in float32 and in int8 of each runtime that has both.

        Latencies of two runtimes would say nothing about the precision.
        """
        points = {point.file.format: point for point in self.points}
        return [
            (points[point.file.float32_format], point)
            for point in points.values()
            if point.file.precision == "int8" and point.file.float32_format in points
        ]


def advantages(models: Sequence[RunModel], *, is_balanced: bool) -> dict[str, tuple[RunModel, str]]:
    """Return, by the ID of each model that is off the front, which one takes its place, and why.

    See `RunModel.advantage`.
    """
    by_id = {model.record.id: model for model in models}
    rivals = {
        name: by_id.get(model.candidate.dominated_by or "")
        for name, model in by_id.items()
        if model.candidate is not None
    }
    return {
        name: (rival, rival.advantage(by_id[name], is_balanced=is_balanced))
        for name, rival in rivals.items()
        if rival is not None
    }


def recipe_names(models: Sequence[RunModel]) -> dict[TrainedBy, str]:
    """Return the recipes of some models in words, each with its details if two have one text."""
    recipes = dict.fromkeys(model.record.recipe for model in models)
    texts = Counter(recipe.text for recipe in recipes)
    return {each: each.text if texts[each.text] == 1 else str(each) for each in recipes}


def undecided_pairs(models: Sequence[RunModel], *, is_balanced: bool) -> list[tuple[str, str]]:
    """Return the IDs of each two models whose accuracies a paired test does not tell apart."""
    return [
        (first.record.id, second.record.id)
        for first, second in combinations(models, 2)
        if first.difference(second, is_balanced=is_balanced) == 0
    ]


def read_models(
    run: Path,
    rows: pd.DataFrame,
    export_errors: Mapping[str, Mapping[str, str]],
    measured_us: Mapping[str, float],
) -> list[RunModel]:
    """Return the trained models of a run, the fastest first; those that were not timed come last.

    Args:
        run: the run folder.
        rows: all candidates of the run.
        export_errors: see `RunRecord`. Formats that were exported since are left out.
        measured_us: see `Run`.

    Raises:
        CheckpointError: a record or a card is damaged.
    """
    trained = read_trained(run)
    own_rows = candidates.of_table(rows[rows["digest"].isin(trained)])
    by_digest = {candidate.digest: candidate for candidate in own_rows}
    models = []
    for digest, record in trained.items():
        folder = run / MODELS_FOLDER / record.id
        card = CARD.read(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else None
        answers, exit_answers = (
            ANSWERS.read(folder / name) if (folder / name).is_file() else None
            for name in (ANSWERS_FILE, EXIT_ANSWERS_FILE)
        )
        exported = {"all", *(file.format for file in card.files)} if card else set()
        errors = export_errors.get(record.id, {})
        errors = {name: error for name, error in errors.items() if name not in exported}
        candidate, latency_us = by_digest.get(digest), measured_us.get(digest)
        if candidate is not None and candidate.measured_us is not None:
            latency_us = candidate.measured_us
        models.append(RunModel(record, card, candidate, latency_us, answers, exit_answers, errors))
    return sorted(models, key=lambda m: (m.latency_us is None, m.latency_us or 0, m.record.id))
