"""How well a table agrees with its device: checks, calibrations and verifications as text, and the
figure of a check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas import console
from nas.describe.table_comparison import show_ratios
from nas.latency import Calibration, TableCheck, Verification
from nas.latency.calibration import calibration_text
from nas.latency.check_result import CheckedNetwork
from nas.latency.record import MEASURED
from nas.statistics import LatencyAgreement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_RANDOM_NETWORKS = 5
"""Random networks that are shown, those with the largest errors."""

_WHOLE_NETWORK = {True: "measured", False: "estimated"}
"""What the latency of a whole network is called, by whether it was measured."""

_MAX_ROWS_OFF = 10
"""Deviating rows of a verification that are shown."""


def show_check(check: TableCheck) -> None:
    """Print the agreement, the published networks, and the random ones with the largest errors."""
    _show_agreements(check)
    _show_networks(check)
    if check.basis != MEASURED:
        console.say(f"nothing was measured: whole networks are {check.basis}")
    show_uncertain_networks(check)
    if check.disturbed_nets:
        console.say(
            f"{check.disturbed_nets} of {len(check.networks)} networks were timed only "
            "while the processor was slower than it was for the table, so their errors are those "
            "of the moment too; check again while the machine is idle"
        )
    if check.batch > 1:
        console.say(f"latencies are those of {check.batch} images at once")
    _show_target(check)
    retimed = check.retimed_dispatch_agreement
    if retimed is not None:
        console.say(
            "with the dispatch costs and the costs of cache misses timed again after the networks: "
            f"mean error {retimed.mape:.2%}, signed {retimed.bias:+.2%}; if that is much better, "
            "the machine was busier or quieter than when the table was built"
        )
    uncorrected = check.uncorrected_agreement
    if uncorrected is not None:
        console.say(
            "predictions are corrected by the table's calibration, which was fitted on other "
            f"networks; without it: mean error {uncorrected.mape:.2%}, signed "
            f"{uncorrected.bias:+.2%}"
        )


def _show_agreements(check: TableCheck) -> None:
    """Print the agreement over all networks, and over random and published ones separately."""
    rows = [_agreement_row("all", check.agreement)]
    if check.references.networks and check.random.networks:
        rows.append(_agreement_row("random", check.random.agreement))
        rows.append(_agreement_row("published", check.references.agreement))
    console.print_table(
        ["networks", "timed", "mean error", "signed", "within 5%", "within 10%", "Kendall tau",
         "close pairs in order"],
        rows,
    )  # fmt: skip


def _show_networks(check: TableCheck) -> None:
    """Print the predicted and the measured latency of the shown networks."""
    random = check.random.networks
    by_error = sorted(random, key=lambda network: -abs(network.relative_error))
    worst = by_error[:_MAX_RANDOM_NETWORKS]
    shown: list[CheckedNetwork | None] = [*check.references.networks]
    # None separates the two groups by a line.
    shown += [None, *worst] if shown and worst else worst
    console.print_table(
        ["network", "predicted, us", f"{_WHOLE_NETWORK[check.basis == MEASURED]}, us", "error"],
        [None if network is None else _network_row(network) for network in shown],
    )
    if len(worst) < len(random):
        console.say(f"the {len(worst)} of {len(random)} random networks with the largest errors")
    console.say("close pairs: networks whose latencies as a whole differ by 3% to 10%")


def _show_target(check: TableCheck) -> None:
    """Print the precision of the measured latencies, and whether the target is met."""
    if check.retiming_spread is not None:
        console.say(
            "two halves of the timings of the same network: "
            f"{check.retiming_spread:.2%} apart (median)"
        )
    if check.kernels is not None:
        console.say(
            f"kernels took {check.kernels.median:.3f} times what the table says while the networks "
            "were timed (median)"
        )
    if check.calibrated is not None:
        console.say(
            f"{check.calibrated.count} networks of the calibration took "
            f"{check.calibrated.median:.3f} times what they took then (median)"
        )
    if check.as_measured_agreement is not None:
        console.say(
            f"the networks are divided by {check.device_ratio:.3f}; as measured, the mean error is "
            f"{check.as_measured_agreement.mape:.2%} "
            f"(signed {check.as_measured_agreement.bias:+.2%})"
        )
    if check.retiming_tau is not None:
        console.say(
            f"Kendall tau of half of the timings with the other half: {check.retiming_tau:.3f}"
        )
    mape, target = check.agreement.mape, check.target_mape
    console.say(
        f"mean error {mape:.2%}; the target, 2% or twice that spread, is {target:.2%}: "
        f"{'met' if mape <= target else 'missed'}"
    )


def show_uncertain_networks(check: TableCheck) -> None:
    """Print how many networks are predicted from unstable or estimated latencies."""
    console.say(
        f"of {len(check.networks)} networks, {check.nets_with_unstable_kernels} have kernels with "
        f"unstable timings, {check.nets_with_estimated_kernels} have estimated ones"
    )


def _agreement_row(name: str, agreement: LatencyAgreement) -> list[Any]:
    tau, pairs = agreement.kendall_tau, agreement.pairs_3_to_10
    return [
        name,
        agreement.nets,
        f"{agreement.mape:.2%}",
        f"{agreement.bias:+.2%}",
        f"{agreement.within_5_percent:.0%}",
        f"{agreement.within_10_percent:.0%}",
        "undefined" if tau is None else f"{tau:.3f}",
        "none" if pairs is None else f"{pairs:.0%}",
    ]


def _network_row(network: CheckedNetwork) -> list[str]:
    return [
        network.name if network.reference else f"random, {_space(network)}",
        f"{network.predicted_us:.4g}",
        f"{network.measured_us:.4g}",
        f"{network.relative_error:+.2%}",
    ]


def _space(network: CheckedNetwork) -> str:
    return str(network.architecture.get("space", ""))


def show_calibration(calibration: Calibration) -> None:
    """Print a calibration, and the errors without and with it."""
    console.say(calibration_text(asdict(calibration)))
    rows: list[Sequence[Any]] = [
        (
            "random, expected for others with it",
            calibration.nets,
            f"{calibration.mape_before:.2%}",
            f"{calibration.mape_after:.2%}",
        )
    ]
    before, after = calibration.references_mape_before, calibration.references_mape_after
    if before is not None and after is not None:
        references = ("published, not fitted on", calibration.references)
        rows.append((*references, f"{before:.2%}", f"{after:.2%}"))
    console.print_table(["networks", "timed", "error without", "with"], rows)


def show_verification(verification: Verification) -> None:
    """Print the ratios by kind, the rows that deviate, and the verdict."""
    ratios = verification.ratios
    show_ratios({**verification.kinds, **({"all": ratios} if ratios else {})})
    rows_off = verification.rows_off
    if rows_off:
        console.print_table(
            ["off by more than 10%", "table, us", "now, us", "ratio"],
            [
                (
                    row.kernel,
                    f"{row.before_us:.4g}",
                    row.error or f"{row.now_us:.4g}",
                    "" if row.ratio is None else f"{row.ratio:.3f}",
                )
                for row in rows_off[:_MAX_ROWS_OFF]
            ],
        )
    console.say(
        f"{len(verification.rows)} of {verification.rows_in_table} rows timed again, "
        f"{len(rows_off)} of them off by more than 10%"
    )
    counts = {
        "unstable": sum(row.is_unstable for row in verification.rows),
        "estimated": sum(row.is_estimated for row in verification.rows),
    }
    for flag, count in counts.items():
        if count:
            console.say(f"{count} of the rows that were timed again are {flag} in the table")
    for change in verification.recorded_changes:
        console.say(f"note: {change}")
    console.say(f"The table {verification.verdict}.")


def draw_check(check: TableCheck, title: str, path: Path) -> None:
    """Draw predicted against measured latency, and the errors with the published networks' names.

    Args:
        check: the check.
        title: title of the figure.
        path: file of the figure, `.png` or `.svg`.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from nas import plotting

    spaces = dict.fromkeys(map(_space, check.networks))
    styles = {space: plotting.group_style(index) for index, space in enumerate(spaces)}
    with mpl.rc_context(plotting.STYLE):
        figure = Figure(figsize=(12.5, 6), layout="constrained")
        scatter, errors = figure.subplots(1, 2)
        for space, style in styles.items():
            own = [network for network in check.networks if _space(network) == space]
            _draw_networks(scatter, own, style, [n.predicted_us for n in own], has_legend=True)
            _draw_networks(errors, own, style, [_error_point(n)[1] for n in own])
        _finish_scatter(scatter, check)
        _finish_errors(errors, check)
        named = [
            (*_error_point(network), network.name, styles[_space(network)]["color"])
            for network in check.references.networks
        ]
        plotting.label_points(errors, named, [_error_point(each) for each in check.random.networks])
        errors.legend(fontsize=8, frameon=False, loc="best")
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        plotting.save(figure, path)


def _finish_scatter(axes: Axes, check: TableCheck) -> None:
    """Add the diagonal, the ±10% band, the scales and the labels."""
    from nas.plotting import set_plain_ticks, shade_band

    latencies = [us for n in check.networks for us in (n.measured_us, n.predicted_us)]
    diagonal = np.array([0.85 * min(latencies), 1.15 * max(latencies)])
    axes.plot(diagonal, diagonal, color="black", linewidth=0.8, zorder=1)
    shade_band(axes, diagonal, 0.9 * diagonal, 1.1 * diagonal, "±10%")
    axes.set(xscale="log", yscale="log", xlim=diagonal, ylim=diagonal, aspect="equal")
    axes.set_xlabel(_whole_network_label(check))
    axes.set(ylabel="predicted, µs (the table's kernels and launches)")
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    set_plain_ticks(axes, "both")


def _finish_errors(axes: Axes, check: TableCheck) -> None:
    """Add the line of no error, the target band, the scales and the labels."""
    from nas.plotting import set_plain_ticks, shade_band

    measured = [network.measured_us for network in check.networks]
    limits = np.array([0.85 * min(measured), 1.3 * max(measured)])
    target = 100 * check.target_mape
    axes.axhline(0, color="black", linewidth=0.8, zorder=1)
    shade_band(axes, limits, np.full(2, -target), np.full(2, target), "target of the mean error")
    axes.set(xscale="log", xlim=limits, ylabel="predicted over whole network, less one, %")
    axes.set_xlabel(_whole_network_label(check))
    axes.margins(y=0.15)
    set_plain_ticks(axes, "x")


def _whole_network_label(check: TableCheck) -> str:
    return f"{_WHOLE_NETWORK[check.basis == MEASURED]}, µs (whole network)"


def _draw_networks(
    axes: Axes,
    networks: Sequence[CheckedNetwork],
    style: dict[str, Any],
    heights: Sequence[float],
    *,
    has_legend: bool = False,
) -> None:
    """Draw the networks of one space: pale points for random, edged ones for published networks."""
    group_styles: dict[str, dict[str, Any]] = {
        "random": {"s": 30, "alpha": 0.5, "linewidths": 0, "zorder": 3},
        "published": {"s": 62, "edgecolors": "black", "linewidths": 0.8, "zorder": 4},
    }
    for group, own_style in group_styles.items():
        own = [i for i, n in enumerate(networks) if (n.reference is None) is (group == "random")]
        if own:
            axes.scatter(
                [networks[i].measured_us for i in own],
                [heights[i] for i in own],
                label=f"{_space(networks[0])}: {len(own)} {group}" if has_legend else None,
                **own_style,
                **style,
            )


def _error_point(network: CheckedNetwork) -> tuple[float, float]:
    """Return the point of a network in the plot of errors: microseconds and percent."""
    return network.measured_us, 100 * network.relative_error
