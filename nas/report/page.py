"""Writes `report.html`, `front.csv` and `front.json` of a run from the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from nas import files, jsonl
from nas.documents import Format
from nas.errors import RunFolderError
from nas.formatting import format_count
from nas.latency.calibration import calibration_text
from nas.records import (
    ORDER_NAMES,
    RUN,
    TRAINING,
    TRAINING_LOG,
    ArchitectureRecord,
    FrontMember,
    FrontRecord,
    RankingRecord,
    RunRecord,
    TrainingRow,
    read_ranking,
    read_run,
    to_json,
)
from nas.records.fields import FIGURES, MEASURED, ROUGH_PREDICTION
from nas.report import candidates, figures
from nas.report.models import ReportedModel, read_models
from nas.report.rows import HistoryRow, read_csv

HISTORY = "hypervolume.csv"
"""Name of the file with the hypervolume over the completed trials, in the run folder."""

_HISTORY = Format(
    HistoryRow,
    "a search's history",
    RunFolderError,
    "Move the file away: the report can be made without it, and the job writes it again.",
)


def build(folder: Path) -> Path:
    """Write the report of a run and return the path of `report.html`.

    Everything is read and checked before anything is written: `run.json`, `trials.csv`, the logs of
    training and search, the records and cards of trained models and, if `nas supernet rank` wrote
    one, `ranking.json`. Then `front.csv`, `front.json` and `report.html` are replaced.

    Raises RunFolderError if the folder is not a run, its architectures are not scored yet, or a
    file in it is damaged.
    """
    run = _read_reportable_run(folder)
    rows = candidates.read(folder / "trials.csv")
    limit_ms = run.job.search.max_latency_ms
    limit_us = None if limit_ms is None else 1000 * limit_ms
    front = candidates.front(rows, max_latency_us=limit_us)
    record = FrontRecord(
        schema=1, run=run.name, max_latency_ms=limit_ms, front=_members(front, rows)
    )
    logs = {
        space: jsonl.read(folder / "supernets" / space / TRAINING_LOG, TRAINING)
        for space in run.spaces or {}
    }
    history = folder / HISTORY
    page = _render(
        run,
        rows,
        front,
        limit_us,
        read_ranking(folder),
        logs,
        read_csv(history, _HISTORY) if history.is_file() else [],
        read_models(folder, rows),
    )
    candidates.write(front, folder / "front.csv")
    files.replace(folder / "front.json", to_json(record))
    files.replace(folder / "report.html", page)
    return folder / "report.html"


def _read_reportable_run(folder: Path) -> RunRecord:
    """Return the record of a run that has got far enough for a report."""
    run = read_run(folder)
    parts = {"data": run.data, "spaces": run.spaces, "device": run.device, "table": run.table}
    for name, part in parts.items():
        if part is None:
            raise RUN.failure(f"{folder / 'run.json'} has no {name} yet: the job has only begun")
    return run


def _members(front: pd.DataFrame, rows: pd.DataFrame) -> tuple[FrontMember, ...]:
    """Return the members of a front among the candidates of a run."""
    dominated = candidates.dominated_after_training(rows)
    return tuple([_member(row, dominated.get(row["id"])) for _, row in front.iterrows()])


def _member(row: pd.Series, dominated_by: str | None) -> FrontMember:
    def number_or_none(name: str) -> Any:
        return None if pd.isna(row[name]) else row[name]

    def count_or_none(name: str) -> int | None:
        return None if pd.isna(row[name]) else int(row[name])

    return FrontMember(
        id=row["id"],
        space=row["space"],
        digest=row["digest"],
        architecture=ArchitectureRecord.model_validate_json(row["architecture"]),
        validation_accuracy=row["validation_accuracy"],
        corrected_accuracy=number_or_none("corrected_accuracy"),
        holdout_accuracy=number_or_none("holdout_accuracy"),
        trained_accuracy=number_or_none("trained_accuracy"),
        test_accuracy=number_or_none("test_accuracy"),
        dominated_by=dominated_by,
        predicted_us=number_or_none("predicted_us"),
        measured_us=number_or_none("measured_us"),
        unstable_launches=count_or_none("unstable_launches"),
        estimated_launches=count_or_none("estimated_launches"),
        dispatch_share=number_or_none("dispatch_share"),
        basis=row["basis"],
        macs=int(row["macs"]),
        params=int(row["params"]),
        peak_memory_bytes=int(row["peak_memory_bytes"]),
        **{figure: number_or_none(figure) for figure in FIGURES},
    )


def _render(
    run: RunRecord,
    rows: pd.DataFrame,
    front: pd.DataFrame,
    limit_us: float | None,
    ranking: RankingRecord | None,
    logs: Mapping[str, Sequence[TrainingRow]],
    history: Sequence[HistoryRow],
    models: Sequence[ReportedModel],
) -> str:
    """Return the HTML page.

    Args:
        run: record of the run.
        rows: all candidates.
        front: candidates on the front of all spaces.
        limit_us: latency limit of the job, in microseconds.
        ranking: comparison of the supernets with standalone training.
        logs: training logs by space.
        history: hypervolume over the completed trials; empty without a search.
        models: trained models; empty before the first was trained.
    """
    spaces = list(run.spaces or {})
    measured = rows.dropna(subset=["measured_us"])
    space_fronts = {
        space: candidates.front(measured[measured["space"] == space], max_latency_us=limit_us)
        for space in spaces
    }
    drawable_logs = {space: log for space, log in logs.items() if len(log) > 1}
    agreement, basis = candidates.latency_agreement(rows), candidates.basis(rows)
    is_problem = (rows["error"] != "") & (rows["state"] != "infeasible")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nas.report", ""), autoescape=True, trim_blocks=True
    )
    fitted = run.table.calibration if run.table else None
    environment.filters["count"] = partial(format_count, space="")
    return environment.get_template("report.html.j2").render(
        run=run,
        states=rows["state"].value_counts().to_dict(),
        front=_members(front, rows),
        other_members={
            space: _members(own[~own["id"].isin(front["id"])], rows)
            for space, own in space_fronts.items()
        },
        colours=figures.space_colours(spaces),
        unit=figures.latency_unit(rows),
        rough_prediction=ROUGH_PREDICTION,
        basis=basis,
        calibration=calibration_text(fitted) if fitted else "",
        whole_network="measured" if basis == MEASURED else "whole network",
        agreement=agreement,
        ranking=ranking,
        orders=ORDER_NAMES,
        models=models,
        supernet_errors=[m.supernet_error for m in models if m.supernet_error is not None],
        problems=rows[is_problem]["error"].value_counts().to_dict(),
        front_svg=figures.draw_front(
            rows, front, spaces, models, ranking.spaces if ranking else None
        ),
        agreement_svg=figures.draw_latency_agreement(rows, spaces) if agreement else "",
        hypervolume_svg=figures.draw_hypervolume(history) if history else "",
        training_svg=figures.draw_training(drawable_logs) if drawable_logs else "",
        ranking_svg=figures.draw_ranking(ranking.spaces) if ranking else "",
    )
