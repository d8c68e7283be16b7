"""How far a table can be trusted, as the command line prints it: checks and verifications."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nas import console
from nas.describe.tables import show_ratios
from nas.latency import Calibration, Check, Verification
from nas.latency.check import CheckedNetwork
from nas.statistics import LatencyAgreement

_MOST_RANDOM = 5
"""Networks drawn at random that are shown, the worst ones."""


def show_check(found: Check) -> None:
    """The figures, the published networks, and the worst of those drawn at random."""
    random, references, corrected = found.random, found.references, found.corrected
    rows = [_figures("all", found.agreement)]
    if references.rows and random.rows:
        rows.append(_figures("random", random.agreement))
        rows.append(_figures("published", references.agreement))
    console.print_table(
        ["networks", "timed", "mean error", "signed", "within 5%", "within 10%", "Kendall tau",
         "close pairs in order"],
        rows,
    )  # fmt: skip
    worst = sorted(random.rows, key=lambda row: -abs(row.relative_error))[:_MOST_RANDOM]
    shown: list[CheckedNetwork | None] = [*references.rows]
    shown += [None, *worst] if shown and worst else worst
    console.print_table(
        ["network", "predicted, us", "measured, us", "error"],
        [None if row is None else _network(row) for row in shown],
    )
    if len(worst) < len(random.rows):
        console.say(f"of {len(random.rows)} random networks the {len(worst)} worst")
    console.say("close pairs: networks whose measured latencies differ by 3% to 10%")
    show_flagged(found)
    if found.batch > 1:
        console.say(f"latencies are those of {found.batch} images at once")
    spread = found.retiming_spread
    if spread is not None:
        console.say(
            f"two timings of the same network at different moments: {spread:.2%} apart (median)"
        )
    if found.retiming_tau is not None:
        console.say(
            f"Kendall tau of half of the timings with the other half: {found.retiming_tau:.3f}"
        )
    met = "met" if found.agreement.mape <= found.target_mape else "missed"
    console.say(
        f"mean error {found.agreement.mape:.2%}; the target, 2% or twice that spread, is "
        f"{found.target_mape:.2%}: {met}"
    )
    if found.now is not None:
        console.say(
            "with launches, and what weights cost far away, timed once more after the networks: "
            f"mean error {found.now.mape:.2%}, signed {found.now.bias:+.2%}; if that is much "
            "better, the machine was busier or quieter than when the table was built"
        )
    if corrected is not None:
        without, with_it = corrected
        console.say(
            f"with the table's calibration, on the {with_it.nets} networks that it was not fitted "
            f"on: mean error {with_it.mape:.2%} instead of {without.mape:.2%}"
        )


def show_flagged(found: Check) -> None:
    """How many of the networks are predicted from latencies that are to be trusted less."""
    console.say(
        f"of {len(found.rows)} networks, {found.with_unstable} have kernels with unstable "
        f"timings, {found.with_estimated} have estimated ones"
    )


def show_calibration(found: Calibration) -> None:
    """The line, and the error without and with it."""
    console.say(
        f"latency = {found.slope:.4f} x predicted + {found.offset_us:.3g} us, fitted on "
        f"{found.nets} random networks"
    )
    rows: list[Sequence[Any]] = [
        (
            "random, each by a fit on the others",
            found.nets,
            f"{found.mape_before:.2%}",
            f"{found.mape_after:.2%}",
        )
    ]
    if found.references_mape_before is not None and found.references_mape_after is not None:
        rows.append(
            (
                "published, in no fit",
                found.references,
                f"{found.references_mape_before:.2%}",
                f"{found.references_mape_after:.2%}",
            )
        )
    console.print_table(["networks", "timed", "mean error without", "with"], rows)


def show_verification(found: Verification, most: int = 10) -> None:
    """The ratios by kind, and the rows that are off."""
    show_ratios({**found.kinds, **({"all": found.ratios} if found.ratios else {})})
    off = found.off
    if off:
        console.print_table(
            ["off by more than 10%", "table, us", "now, us", "ratio"],
            [
                (
                    row.kernel,
                    f"{row.before_us:.4g}",
                    row.error or f"{row.now_us:.4g}",
                    "" if row.ratio is None else f"{row.ratio:.3f}",
                )
                for row in off[:most]
            ],
        )
    console.say(
        f"{len(found.rows)} of {found.of} rows timed again, {len(off)} of them off by more than 10%"
    )
    unsure = {
        "unstable": sum(row.is_unstable for row in found.rows),
        "estimated": sum(row.is_estimated for row in found.rows),
    }
    for word, count in unsure.items():
        if count:
            console.say(f"{count} of the rows that were timed again are {word} in the table")
    for change in found.changes:
        console.say(f"note: {change}")
    console.say(f"The table {found.verdict}.")


def _figures(name: str, found: LatencyAgreement) -> list[Any]:
    return [
        name,
        found.nets,
        f"{found.mape:.2%}",
        f"{found.bias:+.2%}",
        f"{found.within_5_percent:.0%}",
        f"{found.within_10_percent:.0%}",
        "undefined" if found.kendall_tau is None else f"{found.kendall_tau:.3f}",
        "none" if found.pairs_3_to_10 is None else f"{found.pairs_3_to_10:.0%}",
    ]


def _network(row: CheckedNetwork) -> list[str]:
    name = row.name if row.reference else f"random, {row.architecture.get('space', '')}"
    return [
        name,
        f"{row.predicted_us:.4g}",
        f"{row.measured_us:.4g}",
        f"{row.relative_error:+.2%}",
    ]
