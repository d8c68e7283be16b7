"""`report.html`, `front.csv` and `front.json` of a run, from the files in its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from nas import files, jsonl
from nas.documents import Format
from nas.errors import RunFolderError
from nas.records import (
    RANKING,
    RUN,
    TRAINING,
    TRAINING_LOG,
    ArchitectureRecord,
    Front,
    Member,
    RankingRecord,
    RunRecord,
    TrainingRow,
    to_json,
)
from nas.report import candidates, figures
from nas.report.agreement import agreement
from nas.report.rows import HistoryRow, read_csv

HISTORY = "hypervolume.csv"
"""The hypervolume over the completed trials of the search, in the folder of a run."""

_HISTORY = Format(
    HistoryRow,
    "a search's history",
    RunFolderError,
    "Move the file away: the report does without, and the job writes it again.",
)


def build(folder: Path) -> Path:
    """Write the report of the run in `folder` and return its path.

    Everything is read and checked before anything is written: `run.json`, `trials.csv`, the logs of
    training and search and, where `nas supernet rank` wrote one, `ranking.json`. Then `front.csv`,
    `front.json` and `report.html` are replaced.

    Raises RunFolderError for a folder that is no run, one without scored architectures yet, or a
    file in it that is damaged.
    """
    run = _finished(folder)
    rows = candidates.read(folder / "trials.csv")
    limit_ms = run.job.search.max_latency_ms
    limit_us = None if limit_ms is None else 1000 * limit_ms
    front = candidates.front(rows, max_latency_us=limit_us)
    members = _members(front)
    document = Front(schema=1, run=run.name, max_latency_ms=limit_ms, front=members)
    logs = {
        space: jsonl.read(folder / "supernets" / space / TRAINING_LOG, TRAINING)
        for space in run.spaces or {}
    }
    history = folder / HISTORY
    text = _page(
        run,
        rows,
        front,
        limit_us,
        read_ranking(folder),
        logs,
        read_csv(history, _HISTORY) if history.is_file() else [],
    )
    candidates.write(front, folder / "front.csv")
    files.replace(folder / "front.json", to_json(document))
    files.replace(folder / "report.html", text)
    return folder / "report.html"


def read_run(folder: Path) -> RunRecord:
    """Return `run.json` of a run folder. Raises RunFolderError if there is none or it is bad."""
    path = folder / "run.json"
    if not path.exists():
        raise RUN.failure(f"{folder} is not a run: there is no {path.name} in it")
    return RUN.read(path)


def read_ranking(folder: Path) -> RankingRecord | None:
    """Return `ranking.json` of a run folder; None where supernets were not ranked.

    Raises RunFolderError for a file that is damaged or of an unknown schema.
    """
    path = folder / "ranking.json"
    return RANKING.read(path) if path.exists() else None


def _finished(folder: Path) -> RunRecord:
    """Return the record of a run that has everything a report shows."""
    run = read_run(folder)
    for part in ("data", "spaces", "device", "table"):
        if getattr(run, part) is None:
            raise RUN.failure(f"{folder / 'run.json'} has no {part} yet: the job has only begun")
    return run


def _members(rows: pd.DataFrame) -> tuple[Member, ...]:
    return tuple([member(row) for _, row in rows.iterrows()])


def member(row: pd.Series) -> Member:
    """Return a row of the candidates as a member of a front."""

    def known(name: str) -> Any:
        return None if pd.isna(row[name]) else row[name]

    def count(name: str) -> int | None:
        return None if pd.isna(row[name]) else int(row[name])

    return Member(
        id=row["id"],
        space=row["space"],
        digest=row["digest"],
        architecture=ArchitectureRecord.model_validate_json(row["architecture"]),
        validation_accuracy=row["validation_accuracy"],
        holdout_accuracy=known("holdout_accuracy"),
        predicted_us=known("predicted_us"),
        measured_us=known("measured_us"),
        unstable_launches=count("unstable_launches"),
        estimated_launches=count("estimated_launches"),
        macs=int(row["macs"]),
        params=int(row["params"]),
        peak_memory_bytes=int(row["peak_memory_bytes"]),
    )


def _page(
    run: RunRecord,
    rows: pd.DataFrame,
    front: pd.DataFrame,
    limit_us: float | None,
    ranking: RankingRecord | None,
    logs: Mapping[str, Sequence[TrainingRow]],
    history: Sequence[HistoryRow],
) -> str:
    spaces = list(run.spaces or {})
    timed = rows.dropna(subset=["measured_us"])
    families = {
        space: candidates.front(timed[timed["space"] == space], max_latency_us=limit_us)
        for space in spaces
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nas.report", ""), autoescape=True, trim_blocks=True
    )
    environment.filters["si"] = _si
    found = agreement(rows)
    drawn = {space: log for space, log in logs.items() if len(log) > 1}
    return environment.get_template("report.html.j2").render(
        run=run,
        states=rows["state"].value_counts().to_dict(),
        front=_members(front),
        families={
            space: _members(own[~own["id"].isin(front["id"])]) for space, own in families.items()
        },
        colours=figures.colours(spaces),
        unit=figures.unit_for(rows),
        agreement=found,
        fronts_svg=figures.fronts(rows, front, spaces),
        agreement_svg=figures.agreement(rows, spaces) if found else "",
        ranking=ranking,
        search_svg=figures.search(history) if history else "",
        training_svg=figures.training(drawn) if drawn else "",
        ranks_svg=figures.ranks(ranking.spaces) if ranking else "",
        problems=rows[(rows["error"] != "") & (rows["state"] != "infeasible")]["error"]
        .value_counts()
        .to_dict(),
    )


def _si(value: float) -> str:
    """1234567 as "1.23M"."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"
