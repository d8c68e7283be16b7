"""Writes `report.html`, `front.csv` and `front.json` of a run from the files in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jinja2
import pandas as pd

from nas import files, jsonl
from nas.documents import Format
from nas.errors import RunFolderError
from nas.formatting import format_count
from nas.latency.calibration import calibration_text
from nas.latency.prediction import ROUGH_PREDICTION
from nas.latency.timing import MEASURED
from nas.report import figures
from nas.report.models import ReportedModel, read_models
from nas.run import candidates
from nas.run.candidates import HistoryRow, read_csv
from nas.run.front import expected_accuracies, front, row_objectives
from nas.run.record import RUN, RunRecord
from nas.run.run import Run
from nas.run.settings import COSTS, SearchSettings
from nas.supernet.ranking_records import ORDER_NAMES, RankingRecord, read_ranking
from nas.supernet.records import TRAINING, TRAINING_LOG, TrainingRow

FRONT_SCHEMA = 3
"""Version of the format of `front.json`."""

HISTORY = "hypervolume.csv"
"""Name of the file with the hypervolume over the completed trials, in the run folder."""

_HISTORY = Format(
    HistoryRow,
    "a search's history",
    RunFolderError,
    "Move the file away: the report can be made without it, and the job writes it again.",
)


def build(run: Run) -> Path:
    """Write the report of a run and return the path of `report.html`.

    Everything is read and checked before anything is written: `run.json`, `trials.csv`, the logs of
    training and search, the records and cards of trained models and, if `nas supernet rank` wrote
    one, `ranking.json`. Then `front.csv`, `front.json` and `report.html` are replaced.

    Raises RunFolderError if the folder is not a run, its architectures are not scored yet, or a
    file in it is damaged.
    """
    folder, record, members = run.path, _reportable_record(run), run.front
    document = {
        "schema": FRONT_SCHEMA,
        "run": record.name,
        "front": [each.model_dump(mode="json") for each in candidates.of_table(members)],
    }
    logs = {
        space: jsonl.read(run.supernet_folder(space) / TRAINING_LOG, TRAINING)
        for space in record.spaces or {}
    }
    history = folder / HISTORY
    page = _render(
        record,
        run.trials,
        members,
        read_ranking(folder),
        logs,
        read_csv(history, _HISTORY) if history.is_file() else [],
        read_models(folder, run.trials, record.export_errors),
    )
    candidates.write(members, folder / "front.csv")
    files.replace(folder / "front.json", f"{json.dumps(document, indent=1, allow_nan=False)}\n")
    files.replace(folder / "report.html", page)
    return folder / "report.html"


def _reportable_record(run: Run) -> RunRecord:
    """Return the record of a run that has got far enough for a report."""
    record = run.record
    parts = {name: getattr(record, name) for name in ("data", "spaces", "device", "table")}
    for name, part in parts.items():
        if part is None:
            where = run.path / "run.json"
            raise RUN.failure(f"{where} has no {name} yet: the job has only begun")
    return record


def _render(
    run: RunRecord,
    rows: pd.DataFrame,
    members: pd.DataFrame,
    ranking: RankingRecord | None,
    logs: Mapping[str, Sequence[TrainingRow]],
    history: Sequence[HistoryRow],
    models: Sequence[ReportedModel],
) -> str:
    """Return the HTML page.

    Args:
        run: record of the run.
        rows: all candidates.
        members: candidates on the front of all spaces.
        ranking: comparison of the supernets with standalone training.
        logs: training logs by space.
        history: hypervolume over the completed trials; empty without a search.
        models: trained models; empty before the first was trained.
    """
    spaces, search = list(run.spaces or {}), run.job.search
    measured = rows.dropna(subset=["measured_us"])
    space_fronts = {space: front(measured[measured["space"] == space], search) for space in spaces}
    plots = [
        figures.draw_front(rows, members, spaces, axis, models, ranking.spaces if ranking else None)
        for axis in figures.front_axes(rows, search)
    ]
    shown = candidates.of_table(members)
    latency, accuracy, *others = [o.label for o in row_objectives(rows, search) if o.is_optimised]
    objectives = [accuracy, latency, *others]
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
        front=shown,
        expected_accuracies=expected_accuracies(shown),
        objectives=objectives,
        limits=_limits(search),
        costs={name: COSTS[name] for name in COSTS if name in rows and rows[name].notna().any()},
        devices=[device.name for device in search.device],
        other_members={
            space: candidates.of_table(own[~own["id"].isin(members["id"])])
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
        untrained={
            name: reason
            for name, reason in run.training_errors.items()
            if name not in [model.record.id for model in models]
        },
        supernet_errors=[m.supernet_error for m in models if m.supernet_error is not None],
        problems=rows[is_problem]["error"].value_counts().to_dict(),
        front_svgs=plots,
        agreement_svg=figures.draw_latency_agreement(rows, spaces) if agreement else "",
        hypervolume_svg=figures.draw_hypervolume(history) if history else "",
        training_svg=figures.draw_training(drawable_logs) if drawable_logs else "",
        ranking_svg=figures.draw_ranking(ranking.spaces) if ranking else "",
    )


def _limits(search: SearchSettings) -> list[str]:
    """Return the limits of a job, each in words with its unit."""
    latencies = {"latency": search.max_latency_ms}
    latencies |= {f"latency on {device.name}": device.max_latency_ms for device in search.device}
    texts = [f"{name} {limit:g} ms" for name, limit in latencies.items() if limit is not None]
    for name, limit in search.cost_limits.items():
        if limit is not None:
            texts.append(f"{COSTS[name].label} {COSTS[name].scale * limit:,.7g}")
    return texts
