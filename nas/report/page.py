"""`report.html`, `front.csv` and `front.json` of a run, from the files in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from nas import files, jsonl
from nas.errors import RunFolderError
from nas.report import candidates, figures
from nas.report.agreement import agreement

SCHEMA = 1

LOG = "training.jsonl"
"""Of a supernet's training, in its folder of a run."""

HISTORY = "hypervolume.csv"
"""Of the search, in the folder of a run."""


def build(folder: Path) -> Path:
    """Writes the report of the run in `folder` and returns its path.

    Reads `run.json`, `trials.csv`, the logs of training and search and, where `nas supernet rank`
    wrote one, `ranking.json`; writes `front.csv`, `front.json` and `report.html`.
    Raises RunFolderError if the folder is no run, or one without scored architectures yet.
    """
    run = read_run(folder)
    rows = candidates.read(folder / "trials.csv")
    limit_ms = run["job"].get("search", {}).get("max_latency_ms")
    limit_us = None if limit_ms is None else 1000 * limit_ms
    front = candidates.front(rows, max_latency_us=limit_us)
    candidates.write(front, folder / "front.csv")
    document = {
        "schema": SCHEMA,
        "run": run["name"],
        "max_latency_ms": limit_ms,
        "front": [member(row) for _, row in front.iterrows()],
    }
    files.replace(folder / "front.json", json.dumps(document, indent=1) + "\n")
    path = folder / "report.html"
    logs = {space: jsonl.read(folder / "supernets" / space / LOG) for space in run["spaces"]}
    kept = folder / HISTORY
    history = pd.read_csv(kept) if kept.is_file() else None
    files.replace(path, _page(run, rows, front, limit_us, read_ranking(folder), logs, history))
    return path


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder. Raises RunFolderError if there is none or it is damaged."""
    path = folder / "run.json"
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{folder} is not a run: {path.name} cannot be read ({error}).",
            remedy="Give the folder that `nas run` or `nas quickstart` wrote.",
        ) from error
    if run.get("schema") != SCHEMA:
        raise RunFolderError(
            f"{path} has schema {run.get('schema')!r}; this version reads schema {SCHEMA}.",
            remedy="Use the version of the tool that made the run.",
        )
    return run


def read_ranking(folder: Path) -> dict[str, Any] | None:
    """`ranking.json` of a run folder; None where supernets were not put to the proof.

    Raises RunFolderError for a file that is damaged or of an unknown schema.
    """
    path = folder / "ranking.json"
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}).") from error
    if found.get("schema") != SCHEMA:
        raise RunFolderError(
            f"{path} has schema {found.get('schema')!r}; this version reads schema {SCHEMA}.",
            remedy="Write it again with `nas supernet rank`.",
        )
    return found


def member(row: pd.Series) -> dict[str, Any]:
    """A row as the JSON record that `nas select` and `front.json` hold."""

    def number(name: str) -> float | None:
        return None if pd.isna(row[name]) else float(row[name])

    return {
        "id": row["id"],
        "space": row["space"],
        "digest": row["digest"],
        "architecture": json.loads(row["architecture"]),
        "validation_accuracy": number("validation_accuracy"),
        "holdout_accuracy": number("holdout_accuracy"),
        "predicted_us": number("predicted_us"),
        "measured_us": number("measured_us"),
        "macs": int(row["macs"]),
        "params": int(row["params"]),
        "peak_memory_bytes": int(row["peak_memory_bytes"]),
    }


def _page(
    run: dict[str, Any],
    rows: pd.DataFrame,
    front: pd.DataFrame,
    limit_us: float | None,
    ranking: dict[str, Any] | None,
    logs: dict[str, list[dict[str, Any]]],
    history: pd.DataFrame | None,
) -> str:
    spaces = list(run["spaces"])
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
        front=[member(row) for _, row in front.iterrows()],
        families={
            space: [member(row) for _, row in own.iterrows() if row["id"] not in set(front["id"])]
            for space, own in families.items()
        },
        colours=figures.colours(spaces),
        unit=figures.unit_for(rows),
        agreement=found,
        fronts_svg=figures.fronts(rows, front, spaces),
        agreement_svg=figures.agreement(rows, spaces) if found else "",
        ranking=ranking,
        search_svg=figures.search(history) if history is not None else "",
        training_svg=figures.training(drawn) if drawn else "",
        ranks_svg=figures.ranks(ranking["spaces"]) if ranking else "",
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
