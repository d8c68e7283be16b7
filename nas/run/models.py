"""The trained models of a run: what training gave, and what was exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from nas.run import candidates
from nas.run.candidates import Candidate
from nas.run.model_card import CARD, CARD_FILE, ExportedFile, ModelCard
from nas.run.trained import MODELS_FOLDER, TrainedRecord, read_trained


@dataclass(frozen=True)
class RunModel:
    """A trained network of a run.

    Attributes:
        record: how it was trained, and its accuracies.
        card: card of its exported files; None if nothing was exported.
        candidate: its row among the candidates; None for a published network.
        export_errors: why formats were not exported, by format; "all" stands for all of them.
    """

    record: TrainedRecord
    card: ModelCard | None
    candidate: Candidate | None
    export_errors: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Path of the model's folder from the run folder."""
        return f"{MODELS_FOLDER}/{self.record.id}"

    @property
    def latency_us(self) -> float | None:
        """Measured latency, or the predicted one; None if the search timed no such network."""
        if self.candidate is None:
            return None
        return self.candidate.measured_us or self.candidate.predicted_us

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
    run: Path, rows: pd.DataFrame, export_errors: Mapping[str, Mapping[str, str]]
) -> list[RunModel]:
    """Return the trained models of a run, the fastest first and published networks last.

    Args:
        run: the run folder.
        rows: all candidates of the run.
        export_errors: see `RunRecord`. Formats that were exported since are left out.

    Raises:
        CheckpointError: a record or a card is damaged.
    """
    trained = read_trained(run)
    own_rows = candidates.of_table(rows[rows["digest"].isin(trained)])
    by_digest = {candidate.digest: candidate for candidate in own_rows}
    models = []
    for digest, record in trained.items():
        path = run / MODELS_FOLDER / record.id / CARD_FILE
        card = CARD.read(path) if path.is_file() else None
        exported = {"all", *(file.format for file in card.files)} if card else set()
        errors = export_errors.get(record.id, {})
        errors = {name: errors[name] for name in errors if name not in exported}
        models.append(RunModel(record, card, by_digest.get(digest), errors))
    return sorted(models, key=lambda m: (m.latency_us is None, m.latency_us or 0, m.record.id))
