"""The section of the page with the cascades of the trained networks of a run."""

from __future__ import annotations

from nas.errors import InfeasibleError, RequestError
from nas.files.documents import Document
from nas.plans.cascade import Cascade
from nas.plans.cascade_members import plan_cascades
from nas.run.run import Run


class CascadeSection(Document):
    """The best cascades of two networks each, and the one to choose.

    Attributes:
        images: the images that judge them, in words.
        curve: the cascades, the fastest first.
        chosen: the fastest that loses nothing to the most accurate network, on the images that
            chose the thresholds; null without any.
        verdict: whether it is better than a single network, a sentence.
        notes: why trained networks are in none, a clause for each.
    """

    images: str
    curve: list[Cascade]
    chosen: Cascade | None
    verdict: str
    notes: tuple[str, ...]


def cascade_section(run: Run) -> CascadeSection | None:
    """Return the cascades of a run; None if no two networks can be in one."""
    try:
        plan = plan_cascades(run)
    except RequestError:
        return None
    chosen, verdict = None, ""
    try:
        chosen = plan.choose()
        verdict = plan.verdict_of(chosen)
    except InfeasibleError as error:
        verdict = error.message
    return CascadeSection(
        images=plan.images, curve=plan.curve, chosen=chosen, verdict=verdict, notes=plan.notes
    )
