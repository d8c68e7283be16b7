"""The section of the report on trust: everything that limits a conclusion, the worst first."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, get_args

import numpy as np
import pandas as pd

from nas.display.formatting import capitalised
from nas.files.documents import Document
from nas.latency.prediction import ROUGH_PREDICTION
from nas.latency.timing import MEASURED
from nas.run import candidates
from nas.run.candidates import Candidate
from nas.run.front import front
from nas.run.models import RunModel, undecided_pairs
from nas.run.probes import WORTHWHILE
from nas.run.run import Run
from nas.statistics import smallest_difference
from nas.supernet.ranking_records import IntervalRecord, SpaceRanking

Severity = Literal["limit", "note", "fine"]
"""How much a finding matters: it limits a conclusion, is worth a note, or is as it should be."""

SEVERITY_NAMES: dict[Severity, str] = {
    "limit": "limits a conclusion",
    "note": "take note",
    "fine": "fine",
}
"""The severities in words, the worst first."""

NOTABLE_PREDICTION_ERROR, LIMITING_PREDICTION_ERROR = 0.05, 0.15
"""Mean error of predicted latencies, as a fraction, that is worth a note or limits a conclusion.

A good table is 2% to 3% off. Networks are 3% to 10% apart where a choice is open, so that 5% puts
some of them in a wrong order, and 15% most of them.
"""

NOTABLE_SLOWDOWN, LIMITING_SLOWDOWN = 1.1, 1.5
"""Typical over quiet latency that is worth a note or limits a conclusion.

Machines change by 2% to 10% from moment to moment; where half of all moments are 1.5 times as slow
as the latency on the page, no promise can be made from it.
"""

LIMITING_UNCERTAIN_SHARE = 0.1
"""Share of uncertain kernels from which hardly any network of some ten kernels is without one."""

MIN_RANKING_TAU = 0.5
"""Kendall's tau with which three of four pairs are in order; a second training has about 0.6."""

NOTABLE_DIFFERENCE = 0.01
"""Difference of accuracies, one point, that a choice between two networks often turns on."""

FEW_EPOCHS = 30
"""Epochs below which trained networks are known to change places; see docs/ranking.md."""

LATE_SHARE = 0.2
"""Share of the trials of a search, the last ones, whose gain tells whether it was long enough."""

NOTABLE_LATE_GAIN, LIMITING_LATE_GAIN = 0.01, 0.05
"""Share of the hypervolume that the last trials gained.

A search that its model ends expects less than 0.1% from another tenth of its trials.
"""

MIN_TRIALS_TO_JUDGE = 50
"""Completed trials below which the curve of the hypervolume says nothing."""

MAX_SUMMARY_FINDINGS = 3
"""Most findings that the paragraph repeats from the table."""


class TrustRow(Document):
    """A finding on one topic.

    Attributes:
        topic: what it is about.
        finding: a sentence with its number, which can be read alone.
        details: further sentences; may be empty.
        severity: how much it matters.
        remedy: command that would change it; None if there is none.
    """

    topic: str
    finding: str
    details: str = ""
    severity: Severity
    remedy: str | None = None


class TrustSection(Document):
    """What limits the conclusions from a run.

    Attributes:
        summary: the worst findings in two to four sentences.
        rows: the findings, the worst first.
    """

    summary: str
    rows: tuple[TrustRow, ...]


@dataclass(frozen=True)
class _Facts:
    """What is read from a run once for all topics.

    Attributes:
        run: the run.
        rows: its candidates.
        members: its front.
        models: its trained networks.
    """

    run: Run
    rows: pd.DataFrame
    members: Sequence[Candidate]
    models: Sequence[RunModel]

    @property
    def continue_command(self) -> str | None:
        """Command that runs the job to its end; None while it runs."""
        return None if self.run.is_running else self.run.continue_command

    def command(self, *words: str) -> str:
        """Return a command of `nas` about the run; the last words follow its folder."""
        first, *others = words
        return shlex.join(["nas", *first.split(), str(self.run.path), *others])


def trust_section(run: Run) -> TrustSection:
    """Return what limits the conclusions from a run, which may have only begun.

    Raises the errors of the files of the run that are read, see `Run`.
    """
    rows = run.trials_so_far
    members = candidates.of_table(front(rows, run.settings.search))
    facts = _Facts(run, rows, members, run.models)
    findings = [row for topic in _TOPICS if (row := topic(facts)) is not None]
    order = list(get_args(Severity))
    findings.sort(key=lambda row: order.index(row.severity))
    return TrustSection(summary=_summary(findings), rows=tuple(findings))


def _summary(rows: Sequence[TrustRow]) -> str:
    worst = rows[0].severity
    named = [row.finding for row in rows if row.severity == worst][:MAX_SUMMARY_FINDINGS]
    count = sum(row.severity == worst for row in rows)
    match worst:
        case "limit":
            topics = "topic limits" if count == 1 else "topics limit"
            begin = f"{count} {topics} what can be concluded from this page."
        case "note":
            topics = "topic is" if count == 1 else "topics are"
            begin = (
                f"Nothing limits a conclusion from this page, and {count} {topics} worth a note."
            )
        case "fine":
            return "Nothing limits a conclusion from this page. The table says what was checked."
    return " ".join([begin, *named])


def _predictions(facts: _Facts) -> TrustRow | None:
    agreement = candidates.latency_agreement(facts.rows)
    rough = [each for each in facts.members if each.is_rough]
    roughness = (
        f"In {len(rough)} of {len(facts.members)} networks of the front, launches have more of the "
        f"predicted latency than kernels: {ROUGH_PREDICTION}."
        if rough
        else ""
    )
    if agreement is None:
        return TrustRow(
            topic="predicted latency",
            finding="No network was timed as a whole: all latencies are predictions of the latency "
            "table.",
            details=roughness,
            severity="limit",
            remedy=facts.continue_command,
        )
    basis = candidates.basis(facts.rows)
    whole = "measured" if basis == MEASURED else "whole network's"
    details = (
        f"{agreement.within_5_percent:.0%} of them are within 5% of the {whole} latency, "
        f"{agreement.within_10_percent:.0%} within 10%."
    )
    if agreement.kendall_tau is not None:
        details += f" Kendall's tau of both latencies is {agreement.kendall_tau:.3f}."
    return TrustRow(
        topic="predicted latency",
        finding=f"Predicted latencies are {agreement.mape:.1%} off on average, by "
        f"{agreement.nets} networks that were {'timed' if basis == MEASURED else 'estimated'} as a "
        "whole.",
        details=f"{details} {roughness}".rstrip(),
        severity=_by_size(agreement.mape, NOTABLE_PREDICTION_ERROR, LIMITING_PREDICTION_ERROR),
    )


def _ranking(facts: _Facts) -> TrustRow | None:
    spaces, ranking = list(facts.run.record.spaces or {}), facts.run.ranking
    ranked = ranking.spaces if ranking else {}
    unranked = [name for name in spaces if name not in ranked]
    remedy = facts.command("supernet rank")
    if unranked:
        which = "the supernets" if len(unranked) == len(spaces) else _join(unranked)
        return TrustRow(
            topic="ranking",
            finding=f"It was not checked whether {which} {_rank(unranked, spaces)} networks as "
            "training does.",
            severity="limit",
            remedy=remedy,
        )
    order = "supernet" if facts.run.record.correction is None else "corrected"
    taus = {name: _tau(own, order) for name, own in ranked.items() if name in spaces}
    details = [
        f"{name}: {f'tau {tau.text()}' if tau else 'too few distinct scores'} by "
        f"{ranked[name].nets} networks."
        for name, tau in taus.items()
    ]
    chance = [name for name, tau in taus.items() if tau is None or (tau.low or -1.0) <= 0]
    weak = [name for name, tau in taus.items() if tau is None or tau.value < MIN_RANKING_TAU]
    counted = [
        name
        for name, own in ranked.items()
        if own.matched is None or own.matched.lead is None or (own.matched.lead.low or -1.0) <= 0
    ]
    if counted:
        details.append(
            "It is not certain that the scores order equally fast networks better than a count of "
            f"operations or parameters does: {_join(counted)}."
        )
    if chance:
        finding = (
            f"Among equally fast networks of {_join(chance)}, it is not shown that the scores "
            "order them as training does (Kendall's tau, 95% interval)."
        )
        return TrustRow(
            topic="ranking",
            finding=finding,
            details=" ".join(details),
            severity="limit",
            remedy=f"{remedy} --nets {2 * max(own.nets for own in ranked.values())}",
        )
    least = min(tau.value for tau in taus.values() if tau is not None)
    return TrustRow(
        topic="ranking",
        finding="Among equally fast networks, Kendall's tau of scores and trained accuracies is "
        f"{least:.2f} or more.",
        details=" ".join(details),
        severity="note" if weak or counted else "fine",
    )


def _tau(ranking: SpaceRanking, order: str) -> IntervalRecord | None:
    """Return Kendall's tau of an order among equally fast networks, or over all sizes without."""
    if ranking.matched is None:
        return ranking.kendall_tau
    return ranking.matched.kendall_tau.get(order)


def _rank(unranked: Sequence[str], spaces: Sequence[str]) -> str:
    return "ranks" if len(unranked) == 1 < len(spaces) else "rank"


def _spaces(facts: _Facts) -> TrustRow | None:
    spaces, ranking = list(facts.run.record.spaces or {}), facts.run.ranking
    if len(spaces) < 2:
        return None
    pooled = ranking.pooled if ranking else None
    correction = facts.run.record.correction
    anchors = 0 if correction is None else correction.networks
    if pooled is None and anchors:
        return TrustRow(
            topic="comparing spaces",
            finding=f"The scores of the {len(spaces)} spaces are on one scale by "
            f"{anchors} networks that were trained alone.",
            details="These were few, and trained for fewer epochs than the supernets.",
            severity="note",
            remedy=facts.command("supernet rank"),
        )
    if pooled is None:
        return TrustRow(
            topic="comparing spaces",
            finding=f"The {len(spaces)} spaces were scored by {len(spaces)} supernets, whose "
            "scores were not compared with trained networks.",
            details="Accuracies of networks of one space can be compared more reliably than those "
            "of two. Train a network of each space before you choose between spaces.",
            severity="limit",
            remedy=facts.command("supernet rank"),
        )
    tau = pooled.without_offsets or pooled.kendall_tau
    return TrustRow(
        topic="comparing spaces",
        finding=f"The scores of the {len(spaces)} spaces were compared by {pooled.nets} trained "
        f"networks{'' if anchors else ', and the search did not know the result'}.",
        details=f"Kendall's tau of all spaces in one ranking, less the mean difference of each: "
        f"{tau.text()}."
        if tau
        else "",
        severity="fine" if anchors else "note",
    )


def _judging_images(facts: _Facts) -> TrustRow | None:
    data = facts.run.images
    counts = np.sum([data.class_counts[part] for part in data.judging_parts], axis=0)
    images = int(counts.sum())
    known = [each.holdout_accuracy for each in facts.members if each.holdout_accuracy is not None]
    compared = [model.answers for model in facts.models if model.answers is not None]
    shares = [
        float((first.is_right != second.is_right).mean())
        for first, second in combinations(compared, 2)
        if first.counts == second.counts
    ]
    if shares:
        disagreement = float(np.mean(shares))
        basis = f"as the trained networks do about {disagreement:.1%} of them"
    elif known:
        accuracy = float(np.mean(known))
        disagreement = 2 * accuracy * (1 - accuracy)
        basis = f"about {disagreement:.1%} of them, if their mistakes have nothing in common"
    else:
        return None  # Nothing was scored on them yet.
    least = smallest_difference(disagreement, counts if data.is_balanced else [images])
    details = (
        f"One image is {100 / images:.2f} points of accuracy. The images tell two networks apart "
        f"that disagree, {basis}, by the test of McNemar (1947) at 5%."
    )
    undecided = undecided_pairs(facts.models, is_balanced=data.is_balanced)
    if undecided:
        pairs = ", ".join(f"{first} and {second}" for first, second in undecided)
        details += f" No difference is shown between {pairs}."
    severity: Severity = "note" if undecided or least > NOTABLE_DIFFERENCE else "fine"
    if known and least >= max(known) - min(known):
        severity = "limit"
        details += " That is more than the range of accuracies of the whole front."
    return TrustRow(
        topic=f"{data.judging_name} images",
        finding=f"{data.judging_images} show only differences of accuracy of "
        f"{100 * least:.1f} points or more.",
        details=f"{details} {data.judging_note}".rstrip(),
        severity=severity,
    )


def _kernels(facts: _Facts) -> TrustRow | None:
    tables = [table for table in facts.run.record.tables if table is not None]
    if not tables:
        return None
    kernels, failed = sum(t.kernels for t in tables), sum(t.failed for t in tables)
    uncertain = {
        "unstable": sum(t.unstable for t in tables),
        "disturbed": sum(t.disturbed for t in tables),
    }
    resting = [each for each in facts.members if each.uncertain_launches]
    details = []
    if uncertain["unstable"]:
        details.append("The timings of an unstable kernel did not agree in the time they had.")
    if uncertain["disturbed"]:
        details.append(
            "The core was slowed whenever a disturbed kernel was timed: its latency is too high."
        )
    if resting:
        launches = ", ".join(f"{each.id} ({each.uncertain_launches})" for each in resting[:5])
        details.append(f"Launches of the front that rest on such kernels: {launches}.")
    if failed:
        details.append("Networks that need a failed kernel were left out of the search.")
    counts = {"failed": failed, **uncertain}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    severity: Severity = "note" if parts else "fine"
    if sum(uncertain.values()) > LIMITING_UNCERTAIN_SHARE * kernels:
        severity = "limit"
    return TrustRow(
        topic="kernels",
        finding=f"Of the {kernels} kernels of the latency table: {', '.join(parts)}."
        if parts
        else f"All {kernels} kernels of the latency table were timed.",
        details=" ".join(details),
        severity=severity,
        remedy=_build_command(facts.run) if parts else None,
    )


def _slowdown(facts: _Facts) -> TrustRow | None:
    slowdown = facts.run.slowdown
    if slowdown is None:
        return None
    disturbed = [each.id for each in facts.members if each.disturbed]
    by_latency = sorted(facts.members, key=lambda each: each.latency_us)
    unordered = [
        f"{fast.id} and {slow.id}"
        for fast, slow in pairwise(by_latency)
        if not fast.is_told_from(slow)
    ]
    details = (
        "All latencies on this page are those of quiet moments, which tell networks apart. "
        "Do not promise less than the typical one on a machine that does other work, too. "
    )
    if disturbed:
        details += (
            f"The core was slowed whenever {_join(disturbed)} {_verb(disturbed)} timed: these "
            "latencies are those of a disturbed machine. They are upper limits, and the lower "
            "limits are what they may be at full speed. The same job times them again. "
        )
    if unordered:
        details += f"The timings do not tell which is faster of {'; '.join(unordered)}. "
    severity = _by_size(slowdown.typical, NOTABLE_SLOWDOWN, LIMITING_SLOWDOWN)
    if disturbed:
        own: Severity = "limit" if 2 * len(disturbed) > len(facts.members) else "note"
        severity = min(severity, own, key=get_args(Severity).index)
    return TrustRow(
        topic="noise of the machine",
        finding=f"While they were timed, networks {slowdown.text}."
        if not disturbed
        else f"{len(disturbed)} of {len(facts.members)} latencies of the front are those of a core "
        f"that was slowed all the time. Networks {slowdown.text}.",
        details=f"{details}nas doctor says for which share of the time the core is slowed, and how "
        "much.",
        severity=severity,
        remedy=facts.continue_command
        if disturbed
        else None
        if slowdown.typical < NOTABLE_SLOWDOWN
        else "nas doctor",
    )


def _images(facts: _Facts) -> TrustRow | None:
    data = facts.run.images
    total = sum(data.counts.values())
    if not data.problems:
        return TrustRow(
            topic="images",
            finding=f"Nothing is wrong with the {total:,} images as far as it was checked: "
            "duplicates, rare classes, imbalance, unreadable files.",
            severity="fine",
        )
    texts = [f"{capitalised(text)}." for text in data.problems]
    with_training = {
        part
        for parts in data.duplicates
        for part in parts.split("+")
        if "train" in parts.split("+") and part not in ("train", "left out")
    }
    return TrustRow(
        topic="images",
        finding=texts[0],
        details=" ".join(texts[1:]),
        severity="limit" if with_training else "note",
        remedy=shlex.join(["nas", "data", data.source]),
    )


def _training(facts: _Facts) -> TrustRow | None:
    errors = {
        name: reason
        for name, reason in facts.run.record.training_errors.items()
        if name not in [model.record.id for model in facts.models]
    }
    details = [f"{name} was not trained to the end: {reason}" for name, reason in errors.items()]
    own = [model for model in facts.models if not model.is_published]
    if not own:
        if not facts.members:
            return None
        return TrustRow(
            topic="trained networks",
            finding="No network of the front was trained to the end: accuracies are scores of "
            "the supernet.",
            details=" ".join(details),
            severity="limit",
            remedy=facts.continue_command
            if facts.run.record.remaining
            else facts.command("retrain", "--pick", facts.run.choose().member.id),
        )
    trained = {model.record.digest for model in own}
    on_front = sum(each.digest in trained for each in facts.members)
    short = [
        m.record for m in own if m.record.epochs < FEW_EPOCHS and m.record.start != "published"
    ]
    if short:
        details.append(
            f"{_join([each.id for each in short])} had fewer than {FEW_EPOCHS} epochs: so short "
            "trainings order networks otherwise than long ones."
        )
    missed = [m.supernet_error for m in own if m.supernet_error is not None]
    if missed:
        details.append(
            "Before its training, the supernet's score of the same network was "
            f"{100 * np.abs(missed).mean():.1f} points off on average."
        )
    epochs = sorted({model.record.epochs for model in own})
    length = f"{' or '.join(map(str, epochs))} epoch{'' if epochs == [1] else 's'}"
    return TrustRow(
        topic="trained networks",
        finding=f"{on_front} of {len(facts.members)} networks of the front were trained to the "
        f"end, for {length}; the others have scores of the supernet.",
        details=" ".join(details),
        severity="limit" if errors else "note" if short else "fine",
        remedy=facts.continue_command
        if errors
        else facts.command(
            "retrain", "--pick", short[0].id, "--epochs", str(max(FEW_EPOCHS, 2 * short[0].epochs))
        )
        if short
        else None,
    )


def _exports(facts: _Facts) -> TrustRow | None:
    if not facts.models:
        return None
    errors = [
        f"{model.record.id} was not exported{'' if kind == 'all' else f' as {kind}'}: {reason}"
        for model in facts.models
        for kind, reason in model.export_errors.items()
    ]
    noted = [each for each in facts.models if each.card is not None and each.card.latency_notes]
    notes = []
    if noted:
        first, *others = noted
        assert first.card is not None
        if others:
            notes.append(
                f"The cards of {_join([each.record.id for each in noted])} say by how much."
            )
        notes.append(f"{first.record.id}: {' '.join(first.card.latency_notes)}")
    exported = [model for model in facts.models if model.files]
    failing = next((m.record.id for m in facts.models if m.export_errors), None)
    if errors:
        return TrustRow(
            topic="exported files",
            finding=f"{len(errors)} formats of the trained networks could not be exported."
            if len(errors) > 1
            else "One format of a trained network could not be exported.",
            details=" ".join([*errors, *notes]),
            severity="limit",
            remedy=facts.command("export", "--pick", str(failing)),
        )
    if not exported:
        return TrustRow(
            topic="exported files",
            finding="No trained network was exported: no file was checked in its own runtime.",
            severity="note",
            remedy=facts.command("export", "--pick", facts.models[0].record.id),
        )
    files = sum(len(model.files) for model in exported)
    return TrustRow(
        topic="exported files",
        finding="Some exported files take another time than the search measured."
        if notes
        else f"{files} exported files were checked in their own runtimes.",
        details=" ".join(notes),
        severity="note" if notes else "fine",
    )


def _test_images(facts: _Facts) -> TrustRow | None:
    images, read = facts.run.images.counts["test"], len(facts.models)
    trainings = "trained networks"
    if (study := facts.run.study) is not None:
        read += len(study.trainings)
        trainings = "trainings, most of them the study's"
    if read < 2:
        return TrustRow(
            topic="test images",
            finding=f"The {images:,} test images were read for one trained network."
            if read
            else f"The {images:,} test images were not read.",
            severity="fine",
        )
    return TrustRow(
        topic="test images",
        finding=f"The {images:,} test images were read once for each of {read} {trainings}, and "
        "decided nothing.",
        details="The best of several test accuracies is too high: choose by the "
        f"{facts.run.images.judging_name} accuracy.",
        severity="note",
    )


def _unmeasured(facts: _Facts) -> TrustRow | None:
    search, basis = facts.run.settings.search, candidates.basis(facts.rows)
    devices = [device.name for device in search.device]
    notes = [cost.note for cost in search.costs.values() if cost.note]
    estimated = [each.id for each in facts.members if each.estimated_launches]
    details = [*notes]
    if devices:
        details.append(
            f"Latencies on {_join(devices)} are predictions: no whole network was timed there."
        )
    if estimated:
        details.append(
            f"Predictions of {len(estimated)} networks of the front rest on estimates of kernels."
        )
    if basis != MEASURED:
        return TrustRow(
            topic="what was not measured",
            finding=f"No latency on this page was measured: all are {basis}.",
            details=" ".join(
                [
                    "Such a model is no accurate representation of the device, and its numbers "
                    "must not be compared with measured ones or with those of other "
                    "configurations.",
                    *details,
                ]
            ),
            severity="limit",
        )
    if not details:
        return None
    return TrustRow(
        topic="what was not measured",
        finding=details[0],
        details=" ".join(details[1:]),
        severity="note",
        remedy=facts.command("retarget", "--table", search.device[0].table) if devices else None,
    )


def _failures(facts: _Facts) -> TrustRow | None:
    rows = facts.rows
    reasons = rows[(rows["error"] != "") & (rows["state"] != "infeasible")]["error"].value_counts()
    if reasons.empty:
        return None
    failed = int(reasons.sum())
    first = "; ".join(f"{reason} ({count})" for reason, count in list(reasons.items())[:3])
    return TrustRow(
        topic="failures",
        finding=f"{failed} of {len(rows)} networks could not be scored or timed.",
        details=f"{first}.",
        severity="note",
    )


def _search(facts: _Facts) -> TrustRow | None:
    record, history = facts.run.record, facts.run.history
    if not history:
        if record.search is not None:
            return None
        return TrustRow(
            topic="length of the search",
            finding="The search has scored no architecture yet.",
            severity="limit",
            remedy=facts.continue_command,
        )
    completed = history[-1].completed
    more = facts.command("search", "--trials", str(2 * completed))
    if record.search is None or record.search.ended == "interrupted":
        return TrustRow(
            topic="length of the search",
            finding=f"The search has not ended: it has scored {completed} architectures so far.",
            severity="limit",
            remedy=facts.continue_command,
        )
    ended = f"It ended after {completed} architectures: {record.search.ended}."
    if completed < MIN_TRIALS_TO_JUDGE:
        return TrustRow(
            topic="length of the search",
            finding=f"The search has scored only {completed} architectures, which are too few to "
            "say whether more would have helped.",
            details=ended,
            severity="note",
            remedy=more,
        )
    early = history[math.ceil((1 - LATE_SHARE) * len(history)) - 1].hypervolume
    last = history[-1].hypervolume
    if not last:
        return None
    gain = 1.0 if early is None else 1 - early / last
    severity = _by_size(gain, NOTABLE_LATE_GAIN, LIMITING_LATE_GAIN)
    return TrustRow(
        topic="length of the search",
        finding=f"The last {LATE_SHARE:.0%} of the search gained {gain:.1%} of the hypervolume of "
        f"the front{'' if severity == 'fine' else ': a longer one would find better networks'}.",
        details=ended,
        severity=severity,
        remedy=None if severity == "fine" else more,
    )


def _probes(facts: _Facts) -> TrustRow | None:
    probes = facts.run.record.probes.values()
    if not probes:
        return None
    best_probe = max(probes, key=lambda each: each.own.judged)
    finding = f"{capitalised(best_probe.text)}."
    is_worse = False
    own = [model for model in facts.models if not model.is_published]
    if own:
        best = max(own, key=lambda each: each.record.holdout.accuracy).record
        is_worse = best.holdout.accuracy < best_probe.own.judged - WORTHWHILE
        finding = (
            f"The most accurate trained network, {best.id}, is right on "
            f"{best.holdout.accuracy:.1%} of the {facts.run.images.judging_images}, a linear probe "
            f"of {best_probe.network} on {best_probe.own.judged:.1%}."
        )
    details = [f"{capitalised(each.text)}." for each in probes]
    if probed := [model.record.id for model in own if model.record.is_probe]:
        details.append(
            f"{_join(probed)} {'has' if len(probed) == 1 else 'have'} the published weights with a "
            "linear probe, which was right on more of the search images than what was trained."
        )
    is_small = any(each.gain > WORTHWHILE for each in probes)
    return TrustRow(
        topic="linear probe",
        finding=finding,
        details=" ".join(details),
        severity="limit" if is_worse else "note" if is_small else "fine",
    )


_TOPICS: tuple[Callable[[_Facts], TrustRow | None], ...] = (
    _unmeasured,
    _predictions,
    _ranking,
    _training,
    _images,
    _spaces,
    _judging_images,
    _probes,
    _search,
    _kernels,
    _slowdown,
    _exports,
    _failures,
    _test_images,
)
"""The topics in the order in which findings of one severity stand."""


def _by_size(value: float, notable: float, limiting: float) -> Severity:
    return "limit" if value >= limiting else "note" if value >= notable else "fine"


def _join(names: Sequence[str]) -> str:
    """Return names as a list in a sentence."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _verb(names: Sequence[str]) -> str:
    return "was" if len(names) == 1 else "were"


def _build_command(run: Run) -> str:
    """Return the command that times kernels again of the first table of a run with unsure ones."""
    device, sizes = run.settings.device, run.record.settings
    unsure = [bool(t and (t.failed or t.unstable or t.disturbed)) for t in run.record.tables]
    words = ["nas", "table", "build"]
    for name in run.record.spaces or {}:
        words += ["--space", str(run.path / "spaces" / f"{name}.py")]
    options: dict[str, object] = {} if sizes is None else dict(sizes.sizes)
    options |= {"runtime": device.runtime, "batch": device.batch, "out": device.tables}
    options |= device.runtime_options(device.dtypes[unsure.index(True)])
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--retry-failed"])
