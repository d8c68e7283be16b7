"""The trained models of a run: what training gave, and what was exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from nas.run.model_card import CARD, CARD_FILE, ExportedFile, ModelCard
from nas.run.trained import MODELS_FOLDER, TrainedRecord, read_trained


@dataclass(frozen=True)
class ReportedModel:
    """A trained network of a run, as the report shows it.

    Attributes:
        record: how it was trained, and its accuracies.
        card: card of its exported files; None if nothing was exported.
        latency_us: measured latency, or predicted latency if it was not measured; None for a
            published network, which the search did not time.
        is_measured: whether `latency_us` was measured.
        dominated_by: id of a trained network that is not worse in any objective; None if there is
            none.
        export_errors: why formats were not exported, by format; "all" stands for all of them.
    """

    record: TrainedRecord
    card: ModelCard | None
    latency_us: float | None
    is_measured: bool
    dominated_by: str | None
    export_errors: Mapping[str, str] = field(default_factory=dict)

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


def read_models(
    run: Path,
    rows: pd.DataFrame,
    export_errors: Mapping[str, Mapping[str, str]],
) -> list[ReportedModel]:
    """Return the trained models of a run, the fastest first and published networks last.

    Args:
        run: the run folder.
        rows: all candidates of the run, which have the latencies.
        export_errors: see `RunRecord`. Formats that were exported since are left out.

    Raises:
        CheckpointError: a record or a card is damaged.
    """
    measured_us, predicted_us = (
        rows.dropna(subset=[name]).set_index("digest")[name].to_dict()
        for name in ("measured_us", "predicted_us")
    )
    dominated = rows.set_index("id")["dominated_by"].dropna().to_dict()
    models = []
    for digest, record in read_trained(run).items():
        card = _read_card(run, record)
        exported = {"all", *(file.format for file in card.files)} if card else set()
        errors = export_errors.get(record.id, {})
        models.append(
            ReportedModel(
                record,
                card,
                measured_us.get(digest, predicted_us.get(digest)),
                digest in measured_us,
                dominated.get(record.id),
                {name: errors[name] for name in errors if name not in exported},
            )
        )
    return sorted(models, key=lambda m: (m.latency_us is None, m.latency_us or 0, m.record.id))


def _read_card(run: Path, record: TrainedRecord) -> ModelCard | None:
    path = run / MODELS_FOLDER / record.id / CARD_FILE
    return CARD.read(path) if path.is_file() else None
