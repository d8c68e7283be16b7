"""The trained models of a run: what training gave, and what was exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nas.records import CARD, MODELS_FOLDER, ExportedFile, ModelCard, TrainedRecord, read_trained

CARD_FILE = "card.json"
"""Name of the file with the card of an exported model, in the model's folder."""


@dataclass(frozen=True)
class ReportedModel:
    """A trained network of a run, as the report shows it.

    Attributes:
        record: how it was trained, and its accuracies.
        card: card of its exported files; None if nothing was exported.
        latency_us: measured latency, or predicted latency if it was not measured; None for a
            published network, which the search did not time.
        is_measured: whether `latency_us` was measured.
        dominated_by: ids of the trained networks that are at least as fast and at least as
            accurate, and better in one of both.
    """

    record: TrainedRecord
    card: ModelCard | None
    latency_us: float | None
    is_measured: bool
    dominated_by: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Path of the model's folder from the run folder."""
        return f"{MODELS_FOLDER}/{self.record.id}"

    @property
    def supernet_error(self) -> float | None:
        """Supernet's hold-out accuracy minus that of the trained network; None without one."""
        if self.record.supernet_accuracy is None:
            return None
        return self.record.supernet_accuracy - self.record.holdout.accuracy

    @property
    def files(self) -> tuple[ExportedFile, ...]:
        """The exported files, the fastest first; those that were not timed come last."""
        files = self.card.files if self.card else ()
        return tuple(sorted(files, key=lambda f: f.latency.median_us if f.latency else 1e99))


def read_models(run: Path, rows: pd.DataFrame) -> list[ReportedModel]:
    """Return the trained models of a run, the fastest first and published networks last.

    Args:
        run: the run folder.
        rows: all candidates of the run, which have the latencies.

    Raises:
        CheckpointError: a record or a card is damaged.
    """
    measured_us, predicted_us = (
        rows.dropna(subset=[name]).set_index("digest")[name].to_dict()
        for name in ("measured_us", "predicted_us")
    )
    timed = [
        (record, measured_us.get(digest, predicted_us.get(digest)), digest in measured_us)
        for digest, record in read_trained(run).items()
    ]
    models = [
        ReportedModel(
            record,
            _read_card(run, record),
            latency,
            is_measured,
            _dominating(record, latency, timed),
        )
        for record, latency, is_measured in timed
    ]
    return sorted(models, key=lambda m: (m.latency_us is None, m.latency_us or 0, m.record.id))


def _read_card(run: Path, record: TrainedRecord) -> ModelCard | None:
    path = run / MODELS_FOLDER / record.id / CARD_FILE
    return CARD.read(path) if path.is_file() else None


def _dominating(
    record: TrainedRecord,
    latency_us: float | None,
    others: Sequence[tuple[TrainedRecord, float | None, bool]],
) -> tuple[str, ...]:
    """Return the ids of the networks that dominate a network in latency and hold-out accuracy."""
    if latency_us is None:
        return ()
    own = (latency_us, -record.holdout.accuracy)
    dominating = []
    for other, other_us, _ in others:
        if other_us is None or other.digest == record.digest:
            continue
        point = (other_us, -other.holdout.accuracy)
        if all(a <= b for a, b in zip(point, own, strict=True)) and point != own:
            dominating.append(other.id)
    return tuple(dominating)
