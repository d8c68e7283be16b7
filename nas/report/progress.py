"""The section of the report of a run that has not ended: what is still missing."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from nas.files.documents import Count, Document
from nas.run.candidates import basis
from nas.run.kits import waiting_text
from nas.run.run import Run


class ProgressSection(Document):
    """How far a job has come that has not ended.

    Attributes:
        state: whether a process works on the run, or it waits for its device.
        stage: the stage that runs, or in which the job ended.
        remaining: the stages that it has not ended, in their order; `stage` is the first.
        scored: number of architectures that the search has scored.
        sentences: all of this in words.
        command: command that continues an interrupted or waiting job; None for a running one.
    """

    state: Literal["running", "interrupted", "waiting"]
    stage: str
    remaining: tuple[str, ...]
    scored: Count
    sentences: tuple[str, ...]
    command: str | None


def progress_section(run: Run) -> ProgressSection | None:
    """Return how far the job of a run has come; None if it has ended."""
    remaining = run.record.remaining
    if not remaining:
        return None
    waiting = waiting_text(run)
    state: Literal["running", "interrupted", "waiting"] = (
        "waiting" if waiting else "running" if run.is_running else "interrupted"
    )
    rows, history = run.trials_so_far, run.history
    shown = int((rows["state"] == "complete").sum())
    scored = max(shown, history[-1].completed if history else 0)
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    stage, *later = remaining
    if state == "waiting":
        sentences = [waiting]
    elif state == "running":
        sentences = [f"The job is running, and this is what it had at {written}. Stage: {stage}."]
    else:
        sentences = [f"The job is not running, and has not ended: it was interrupted in {stage}."]
    known = "" if scored == shown else f", of which this page has {shown}"
    count = f"{scored} architectures{known}" if scored else "no architecture yet"
    sentences.append(f"The search has scored {count}.")
    if shown and rows["measured_us"].isna().all():
        sentences.append("The front is predicted: no network was timed as a whole yet.")
    elif shown:
        sentences.append(
            f"The front has only the networks whose latency was {basis(rows)} in an earlier start."
        )
    if later:
        sentences.append(f"Not begun: {', '.join(later)}.")
    return ProgressSection(
        state=state,
        stage=stage,
        remaining=tuple(remaining),
        scored=scored,
        sentences=tuple(sentences),
        command=None if state == "running" else run.continue_command,
    )
