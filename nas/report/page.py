"""Writes `report.html`, `front.csv` and `front.json` of a run from the files in its folder."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from functools import cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from nas import files
from nas.display.formatting import format_accuracy, format_count, latency_number
from nas.figures import KERNEL_UNIT, NETWORK_UNIT
from nas.files.documents import Document
from nas.report.document import ReportDocument, precision_pairs, report_document
from nas.report.trust import SEVERITY_NAMES
from nas.run import candidates
from nas.run.answers import MAX_MISTAKES
from nas.run.candidates import Candidate
from nas.run.front import front
from nas.run.models import advantages, recipe_names, undecided_pairs
from nas.run.probes import notable
from nas.run.published import published_comparisons
from nas.run.record import RUN
from nas.run.run import Run
from nas.search.importance import MIN_EXPLAINED
from nas.supernet.ranking_records import ORDER_NAMES

FRONT_SCHEMA = 6
"""Version of the format of `front.json`."""

NUM_COLOURS = 6
"""Number of colours for spaces in `page.css`."""

SCRIPTS = ("base", "plot", "run", "choose", "times", "choices", "details", "live")
"""The scripts of the page of a run, in their order. They share their top-level names."""


def build(run: Run) -> Path:
    """Write the report of a run and return the path of `report.html`.

    The run may have only begun: what is not known yet is left out, and the page says so.

    Everything is read and checked before anything is written: `run.json`, `trials.csv`, the logs of
    training and search, the records and cards of trained models and, if `nas supernet rank` wrote
    it, `ranking.json`. Then `front.csv`, `front.json` and `report.html` are replaced.

    Raises RunFolderError if the folder is not a run, its images are not known yet, or a file in it
    is damaged.
    """
    folder, record = run.path, run.record
    require(run, "data", "spaces")
    members = run.front
    shown = candidates.of_table(members)
    page = _render(run, members, shown, report_document(run))
    front = {
        "schema": FRONT_SCHEMA,
        "run": record.name,
        "judging_images": run.images.judging_images,
        "front": [each.model_dump(mode="json") for each in shown],
    }
    candidates.write(members, folder / "front.csv")
    files.replace(folder / "front.json", f"{json.dumps(front, indent=1, allow_nan=False)}\n")
    files.replace(folder / "report.html", page)
    return folder / "report.html"


def require(run: Run, *names: str) -> None:
    """Raise RunFolderError unless a job has come so far that its record has these fields."""
    for name in names:
        if not getattr(run.record, name):
            raise RUN.failure(f"{run.path / 'run.json'} has no {name} yet: the job has only begun")


def render(template: str, scripts: Sequence[str], document: Document, **values: Any) -> str:
    """Return an HTML page that draws itself from a document.

    Args:
        template: name of the template in the folder `templates`.
        scripts: names of the scripts in that folder, in their order.
        document: what the scripts of the page draw.
        **values: further values for the template.
    """
    page = _environment().get_template(template)
    return page.render(
        document=document,
        document_json=embedded(document),
        style=_part("page.css"),
        script="\n".join([_units(), *(_part(f"{name}.js") for name in scripts)]),
        **values,
    )


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nas.report", "templates"), autoescape=True, trim_blocks=True
    )
    environment.filters["count"] = partial(format_count, space="")
    environment.filters["accuracy"] = format_accuracy
    environment.filters["latency"] = latency_number
    environment.globals["unit"] = NETWORK_UNIT
    return environment


def _units() -> str:
    """Return the units of latencies as constants of the scripts: `unit` and `kernelUnit`."""
    units = {"unit": NETWORK_UNIT, "kernelUnit": KERNEL_UNIT}
    return "\n".join(
        f"const {name} = {json.dumps(unit._asdict())};" for name, unit in units.items()
    )


def _part(name: str) -> str:
    """Return the text of a file of the folder `templates`."""
    return (resources.files("nas.report") / "templates" / name).read_text("utf-8")


def embedded(document: Document) -> str:
    """Return a document as JSON that can stand in a script element of a page.

    No text in it can end the element or begin a comment, because `<` is written as an escape.
    """
    return document.model_dump_json(by_alias=True).replace("<", "\\u003c")


def _render(
    run: Run, members: pd.DataFrame, shown: Sequence[Candidate], document: ReportDocument
) -> str:
    """Return the HTML page.

    Args:
        run: the run.
        members: rows on the front of all spaces.
        shown: the same as candidates.
        document: what the scripts of the page draw.
    """
    record, rows, ranking, models = run.record, run.trials_so_far, run.ranking, run.models
    spaces = list(record.spaces or {})
    measured = rows.dropna(subset=["measured_us"])
    space_fronts = {
        space: front(measured[measured["space"] == space], run.objectives) for space in spaces
    }
    latency, accuracy, *others = [o.figure.words for o in run.objectives if o.is_optimised]
    objectives = [accuracy, latency, *others]
    return render(
        "page.html.j2",
        SCRIPTS,
        document,
        run=record,
        other_size=notable(record.probes.values()),
        states=rows["state"].value_counts().to_dict(),
        front=shown,
        not_told_apart={member.id for member in document.members if member.not_told_from},
        objectives=objectives,
        limits=[
            f"{figure.words} {figure.text(limit)}"
            for figure, limit, _ in run.objectives
            if limit is not None
        ],
        costs=run.figures,
        devices=[device.name for device in record.job.search.device],
        reference_command=shlex.join(["nas", "retrain", str(run.path), "--reference", "NAME"]),
        other_members={
            space: candidates.of_table(own[~own["id"].isin(members["id"])])
            for space, own in space_fronts.items()
        },
        colours={space: index % NUM_COLOURS for index, space in enumerate(spaces)},
        min_explained=MIN_EXPLAINED,
        basis=candidates.basis(rows),
        has_agreement=candidates.latency_agreement(rows) is not None,
        severities=SEVERITY_NAMES,
        pairs=precision_pairs(run, models),
        ranking=ranking,
        published=published_comparisons(run),
        orders=ORDER_NAMES,
        models=models,
        recipes=recipe_names(models),
        advantages=advantages(models, is_balanced=run.images.is_balanced),
        undecided=undecided_pairs(models, is_balanced=run.images.is_balanced),
        pictures=run.settings.finish.pictures,
        most_pictures=MAX_MISTAKES,
    )
