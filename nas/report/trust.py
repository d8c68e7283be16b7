"""The section of the report on trust: everything that limits a conclusion, the worst first."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from nas.display.formatting import capitalised, listed
from nas.files.documents import Document
from nas.latency.prediction import UNCERTAIN_PREDICTION
from nas.latency.timing import MEASURED
from nas.run import candidates
from nas.run.candidates import Candidate
from nas.run.kits import networks_command, waiting_text
from nas.run.models import RunModel, undecided_pairs
from nas.run.probes import WORTHWHILE
from nas.run.run import Run
from nas.statistics import Interval, smallest_difference
from nas.supernet.ranking_records import Order, SpaceRanking

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
"""Typical over fastest latency that is worth a note or limits a conclusion.

Machines change by 2% to 10% all the time; where half of all timings are 1.5 times the latency on
the page, no promise can be made from it.
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


class _Finding(NamedTuple):
    """What is said on a topic, see `TrustRow`."""

    severity: Severity
    finding: str
    details: str = ""
    remedy: str | None = None


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
    def own_models(self) -> list[RunModel]:
        """The trained networks without the published ones."""
        return [model for model in self.models if not model.is_published]

    @property
    def continue_command(self) -> str | None:
        """Command that runs the job to its end; None while it runs.

        If it waits for timings of whole networks, the command that takes them in.
        """
        if self.run.record.waiting == "networks":
            return networks_command(self.run)
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
    facts = _Facts(run, rows, candidates.of_table(run.front), run.models)
    shown = [
        TrustRow(topic=topic.format(judging=run.images.judging_name), **finding._asdict())
        for topic, find in _TOPICS.items()
        if (finding := find(facts)) is not None
    ]
    order = list(SEVERITY_NAMES)
    shown.sort(key=lambda row: order.index(row.severity))
    return TrustSection(summary=_summary(shown), rows=tuple(shown))


def _summary(rows: Sequence[TrustRow]) -> str:
    worst = rows[0].severity
    if worst == "fine":
        return "Nothing limits a conclusion from this page. The table says what was checked."
    named = [row.finding for row in rows if row.severity == worst]
    topics, limit, are = (
        ("1 topic", "limits", "is") if len(named) == 1 else (f"{len(named)} topics", "limit", "are")
    )
    begin = f"{topics} {limit} what can be concluded from this page."
    if worst == "note":
        begin = f"Nothing limits a conclusion from this page, and {topics} {are} worth a note."
    return " ".join([begin, *named[:MAX_SUMMARY_FINDINGS]])


def _predictions(facts: _Facts) -> _Finding:
    agreement = candidates.latency_agreement(facts.rows)
    launches = sum(each.is_mostly_launches for each in facts.members)
    mostly_launches = (
        f"In {launches} of {len(facts.members)} networks of the front, launches have more of the "
        f"predicted latency than kernels: {UNCERTAIN_PREDICTION}."
    )
    if agreement is None:
        return _Finding(
            "limit",
            "No network was timed as a whole: all latencies are predictions of the latency table.",
            _text({waiting_text(facts.run): facts.run.record.waiting, mostly_launches: launches}),
            facts.continue_command,
        )
    is_measured = candidates.basis(facts.rows) == MEASURED
    whole = "measured" if is_measured else "whole network's"
    tau = agreement.kendall_tau
    details = {
        f"{agreement.within_5_percent:.0%} of them are within 5% of the {whole} latency, "
        f"{agreement.within_10_percent:.0%} within 10%.": True,
        f"Kendall's tau of both latencies is {tau or 0:.3f}.": tau is not None,
        mostly_launches: launches,
    }
    return _Finding(
        _by_size(agreement.mape, NOTABLE_PREDICTION_ERROR, LIMITING_PREDICTION_ERROR),
        f"Predicted latencies are {agreement.mape:.1%} off on average, by {agreement.nets} "
        f"networks that were {'timed' if is_measured else 'estimated'} as a whole.",
        _text(details),
    )


def _ranking(facts: _Facts) -> _Finding | None:
    spaces, ranking = list(facts.run.record.spaces or {}), facts.run.ranking
    ranked = ranking.spaces if ranking else {}
    unranked = [name for name in spaces if name not in ranked]
    remedy = facts.command("supernet rank")
    if unranked:
        which = "the supernets" if len(unranked) == len(spaces) else listed(unranked)
        verb = "ranks" if len(unranked) == 1 < len(spaces) else "rank"
        return _Finding(
            "limit",
            f"It was not checked whether {which} {verb} networks as training does.",
            remedy=remedy,
        )
    order: Order = "supernet" if facts.run.record.correction is None else "corrected"
    taus = {name: own.kendall_tau.get(order) for name, own in ranked.items() if name in spaces}
    details = [f"{name}: {_tau_text(ranked[name], tau)}." for name, tau in taus.items()]
    chance = [name for name, tau in taus.items() if tau is None or tau.low <= 0]
    counts = {name: ranked[name].kendall_tau.get("macs") for name in taus}
    counted = [
        name
        for name, tau in taus.items()
        if tau is None or ((count := counts[name]) is not None and tau.low <= count.value)
    ]
    if counted:
        details.append(
            "It is not certain that the scores order equally fast networks better than counting "
            f"operations does: {listed(counted)}."
        )
    if chance:
        return _Finding(
            "limit",
            f"Among equally fast networks of {listed(chance)}, it is not shown that the scores "
            "order them as training does (Kendall's tau, 95% interval).",
            " ".join(details),
            f"{remedy} --nets {2 * max(own.nets for own in ranked.values())}",
        )
    least = min(tau.value for tau in taus.values() if tau is not None)
    return _Finding(
        "note" if least < MIN_RANKING_TAU or counted else "fine",
        "Among equally fast networks, Kendall's tau of scores and trained accuracies is "
        f"{least:.2f} or more.",
        " ".join(details),
    )


def _tau_text(ranking: SpaceRanking, tau: Interval | None) -> str:
    """Return Kendall's tau of the scores of a space, and what it is to be compared with."""
    if tau is None:
        return f"too few distinct scores by {ranking.nets} networks"
    text = f"tau {tau.text()} by {ranking.nets} networks"
    count, again = ranking.kendall_tau.get("macs"), ranking.kendall_tau.get("second training")
    if count is not None:
        text += f"; counting operations has {count.value:.2f}"
    if again is not None:
        text += f"; a second training is expected to reach {again.value:.2f}"
    return text


def _spaces(facts: _Facts) -> _Finding | None:
    spaces, ranking = list(facts.run.record.spaces or {}), facts.run.ranking
    if len(spaces) < 2:
        return None
    pooled = ranking.pooled if ranking else None
    correction = facts.run.record.correction
    anchors = 0 if correction is None else correction.networks
    if pooled is None and anchors:
        return _Finding(
            "note",
            f"The scores of the {len(spaces)} spaces are on one scale by {anchors} networks that "
            "were trained alone.",
            "These were few, and trained for fewer epochs than the supernets.",
            facts.command("supernet rank"),
        )
    if pooled is None:
        return _Finding(
            "limit",
            f"The {len(spaces)} spaces were scored by {len(spaces)} supernets, whose scores were "
            "not compared with trained networks.",
            "Accuracies of networks of one space can be compared more reliably than those of two. "
            "Train a network of each space before you choose between spaces.",
            facts.command("supernet rank"),
        )
    tau = pooled.without_offsets or pooled.kendall_tau
    return _Finding(
        "fine" if anchors else "note",
        f"The scores of the {len(spaces)} spaces were compared by {pooled.nets} trained "
        f"networks{'' if anchors else ', and the search did not know the result'}.",
        "Kendall's tau of all spaces in one ranking, less the mean difference of each: "
        f"{tau.text()}."
        if tau
        else "",
    )


def _judging_images(facts: _Facts) -> _Finding | None:
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
    undecided = undecided_pairs(facts.models, is_balanced=data.is_balanced)
    pairs = ", ".join(f"{first} and {second}" for first, second in undecided)
    is_blind = bool(known) and least >= max(known) - min(known)
    is_notable = undecided or least > NOTABLE_DIFFERENCE
    details = {
        f"One image is {100 / images:.2f} points of accuracy. The images tell two networks apart "
        f"that disagree, {basis}, by the test of McNemar (1947) at 5%.": True,
        f"No difference is shown between {pairs}.": undecided,
        "That is more than the range of accuracies of the whole front.": is_blind,
        data.judging_note: data.judging_note,
    }
    return _Finding(
        "limit" if is_blind else "note" if is_notable else "fine",
        f"{data.judging_images} show only differences of accuracy of {100 * least:.1f} points or "
        "more.",
        _text(details),
    )


def _kernels(facts: _Facts) -> _Finding | None:
    tables = facts.run.record.tables.values()
    if not tables:
        return None
    kernels, failed, unstable, disturbed = (
        sum(getattr(table, name) for table in tables)
        for name in ("kernels", "failed", "unstable", "disturbed")
    )
    counts = {"failed": failed, "unstable": unstable, "disturbed": disturbed}
    parts = [f"{count} {name}" for name, count in counts.items() if count]
    if not parts:
        return _Finding("fine", f"All {kernels} kernels of the latency table were timed.")
    resting = [
        f"{each.id} ({each.uncertain_launches})"
        for each in facts.members
        if each.uncertain_launches
    ]
    details = {
        "The timings of an unstable kernel did not agree in the time they had.": unstable,
        "The core was slowed whenever a disturbed kernel was timed: its latency is too high.": (
            disturbed
        ),
        f"Launches of the front that rest on such kernels: {', '.join(resting[:5])}.": resting,
        "Networks that need a failed kernel were left out of the search.": failed,
    }
    is_limit = unstable + disturbed > LIMITING_UNCERTAIN_SHARE * kernels
    return _Finding(
        "limit" if is_limit else "note",
        f"Of the {kernels} kernels of the latency table: {', '.join(parts)}.",
        _text(details),
        _build_command(facts.run),
    )


def _slowdown(facts: _Facts) -> _Finding | None:
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
    details = {
        "All latencies on this page are those of the fastest rounds, which tell networks apart. Do "
        "not promise less than the typical one on a machine that does other work, too.": True,
        f"The core was slowed whenever {listed(disturbed)} "
        f"{'was' if len(disturbed) == 1 else 'were'} timed: these latencies are those of a "
        "disturbed machine. They are upper limits, and the lower limits are what they may be at "
        "full speed. The same job times them again.": disturbed,
        f"The timings do not tell which is faster of {'; '.join(unordered)}.": unordered,
        "nas doctor says for which share of the time the core is slowed, and how much.": True,
    }
    severity = _by_size(slowdown.typical, NOTABLE_SLOWDOWN, LIMITING_SLOWDOWN)
    if not disturbed:
        return _Finding(
            severity,
            f"While they were timed, networks {slowdown.text}.",
            _text(details),
            None if severity == "fine" else "nas doctor",
        )
    is_limit = severity == "limit" or 2 * len(disturbed) > len(facts.members)
    return _Finding(
        "limit" if is_limit else "note",
        f"{len(disturbed)} of {len(facts.members)} latencies of the front are those of a core that "
        f"was slowed all the time. Networks {slowdown.text}.",
        _text(details),
        facts.continue_command,
    )


def _images(facts: _Facts) -> _Finding:
    data = facts.run.images
    if not data.problems:
        return _Finding(
            "fine",
            f"Nothing is wrong with the {sum(data.counts.values()):,} images as far as it was "
            "checked: duplicates, rare classes, imbalance, unreadable files.",
        )
    first, *others = (f"{capitalised(text)}." for text in data.problems)
    pairs = [set(parts.split("+")) for parts in data.duplicates]
    with_training = any("train" in parts and parts - {"train", "left out"} for parts in pairs)
    return _Finding(
        "limit" if with_training else "note",
        first,
        " ".join(others),
        shlex.join(["nas", "data", data.source]),
    )


def _training(facts: _Facts) -> _Finding | None:
    trained = [model.record.id for model in facts.models]
    errors = {
        name: f"{name} was not trained to the end: {reason}"
        for name, reason in facts.run.record.training_errors.items()
        if name not in trained
    }
    own = facts.own_models
    if not own and not facts.members:
        return None
    if not own:
        return _Finding(
            "limit",
            "No network of the front was trained to the end: accuracies are scores of the "
            "supernet.",
            " ".join(errors.values()),
            facts.continue_command
            if facts.run.record.remaining
            else facts.command("retrain", "--pick", facts.run.selection().choose().member.id),
        )
    digests = {model.record.digest for model in own}
    on_front = sum(each.digest in digests for each in facts.members)
    short = [
        m.record for m in own if m.record.epochs < FEW_EPOCHS and m.record.start != "published"
    ]
    missed = [m.supernet_error for m in own if m.supernet_error is not None]
    details = {
        " ".join(errors.values()): errors,
        f"{listed([each.id for each in short])} had fewer than {FEW_EPOCHS} epochs: so short "
        "trainings order networks otherwise than long ones.": short,
        "Before its training, the supernet's score of the same network was "
        f"{100 * np.abs(missed or [0]).mean():.1f} points off on average.": missed,
    }
    epochs = sorted({model.record.epochs for model in own})
    length = f"{' or '.join(map(str, epochs))} epoch{'' if epochs == [1] else 's'}"
    remedy = None
    if errors:
        remedy = facts.continue_command
    elif short:
        longer = max(FEW_EPOCHS, 2 * short[0].epochs)
        remedy = facts.command("retrain", "--pick", short[0].id, "--epochs", str(longer))
    return _Finding(
        "limit" if errors else "note" if short else "fine",
        f"{on_front} of {len(facts.members)} networks of the front were trained to the end, for "
        f"{length}; the others have scores of the supernet.",
        _text(details),
        remedy,
    )


def _exports(facts: _Facts) -> _Finding | None:
    if not facts.models:
        return None
    errors = [
        f"{model.record.id} was not exported{'' if kind == 'all' else f' as {kind}'}: {reason}"
        for model in facts.models
        for kind, reason in model.export_errors.items()
    ]
    notes = {
        model.record.id: " ".join(model.card.latency_notes)
        for model in facts.models
        if model.card is not None and model.card.latency_notes
    }
    noted = _text(
        {
            f"The cards of {listed(notes)} say by how much.": len(notes) > 1,
            " ".join(f"{name}: {text}" for name, text in list(notes.items())[:1]): notes,
        }
    )
    if errors:
        failing = next(model.record.id for model in facts.models if model.export_errors)
        return _Finding(
            "limit",
            f"{len(errors)} formats of the trained networks could not be exported."
            if len(errors) > 1
            else "One format of a trained network could not be exported.",
            " ".join([*errors, noted]).rstrip(),
            facts.command("export", "--pick", failing),
        )
    files = sum(len(model.files) for model in facts.models)
    if not files:
        return _Finding(
            "note",
            "No trained network was exported: no file was checked in its own runtime.",
            remedy=facts.command("export", "--pick", facts.models[0].record.id),
        )
    return _Finding(
        "note" if notes else "fine",
        "Some exported files take another time than the search measured."
        if notes
        else f"{files} exported files were checked in their own runtimes.",
        noted,
    )


def _test_images(facts: _Facts) -> _Finding:
    images, read = f"The {facts.run.images.counts['test']:,} test images", len(facts.models)
    if read < 2:
        was = "were read for one trained network" if read else "were not read"
        return _Finding("fine", f"{images} {was}.")
    return _Finding(
        "note",
        f"{images} were read once for each of {read} trained networks, and decided nothing.",
        "The best of several test accuracies is too high: choose by the "
        f"{facts.run.images.judging_name} accuracy.",
    )


def _unmeasured(facts: _Facts) -> _Finding | None:
    search, basis = facts.run.settings.search, candidates.basis(facts.rows)
    devices = [device.name for device in search.device]
    estimated = sum(bool(each.estimated_launches) for each in facts.members)
    details = [figure.note for figure in facts.run.figures.values() if figure.note]
    if devices:
        details.append(
            f"Latencies on {listed(devices)} are predictions: no whole network was timed there."
        )
    if estimated:
        details.append(
            f"Predictions of {estimated} networks of the front rest on estimates of kernels."
        )
    if basis != MEASURED:
        model = (
            "Such a model is no accurate representation of the device, and its numbers must not be "
            "compared with measured ones or with those of other configurations."
        )
        finding = f"No latency on this page was measured: all are {basis}."
        return _Finding("limit", finding, " ".join([model, *details]))
    if not details:
        return None
    first, *others = details
    remedy = facts.command("retarget", "--table", search.device[0].table) if devices else None
    return _Finding("note", first, " ".join(others), remedy)


def _failures(facts: _Facts) -> _Finding | None:
    rows = facts.rows
    reasons = rows[(rows["error"] != "") & (rows["state"] != "infeasible")]["error"].value_counts()
    if reasons.empty:
        return None
    first = "; ".join(f"{reason} ({count})" for reason, count in list(reasons.items())[:3])
    return _Finding(
        "note",
        f"{reasons.sum()} of {len(rows)} networks could not be scored or timed.",
        f"{first}.",
    )


def _search(facts: _Facts) -> _Finding | None:
    search, history = facts.run.record.search, facts.run.history
    if not history and search is not None:
        return None
    if not history:
        finding = "The search has scored no architecture yet."
        return _Finding("limit", finding, remedy=facts.continue_command)
    completed = history[-1].completed
    if search is None or search.ended == "interrupted":
        finding = f"The search has not ended: it has scored {completed} architectures so far."
        return _Finding("limit", finding, remedy=facts.continue_command)
    more = facts.command("search", "--trials", str(2 * completed))
    ended = f"It ended after {completed} architectures: {search.ended}."
    if completed < MIN_TRIALS_TO_JUDGE:
        finding = (
            f"The search has scored only {completed} architectures, which are too few to say "
            "whether more would have helped."
        )
        return _Finding("note", finding, ended, more)
    early = history[math.ceil((1 - LATE_SHARE) * len(history)) - 1].hypervolume
    last = history[-1].hypervolume
    if not last:
        return None
    gain = 1.0 if early is None else 1 - early / last
    severity = _by_size(gain, NOTABLE_LATE_GAIN, LIMITING_LATE_GAIN)
    is_fine = severity == "fine"
    return _Finding(
        severity,
        f"The last {LATE_SHARE:.0%} of the search gained {gain:.1%} of the hypervolume of the "
        f"front{'' if is_fine else ': a longer one would find better networks'}.",
        ended,
        None if is_fine else more,
    )


def _probes(facts: _Facts) -> _Finding | None:
    probes, own = facts.run.record.probes.values(), facts.own_models
    if not probes:
        return None
    best_probe = max(probes, key=lambda each: each.own.judged)
    finding, is_worse = f"{capitalised(best_probe.text)}.", False
    if own:
        best = max(own, key=lambda each: each.record.holdout.accuracy).record
        is_worse = best.holdout.accuracy < best_probe.own.judged - WORTHWHILE
        finding = (
            f"The most accurate trained network, {best.id}, is right on "
            f"{best.holdout.accuracy:.1%} of the {facts.run.images.judging_images}, a linear probe "
            f"of {best_probe.network} on {best_probe.own.judged:.1%}."
        )
    probed = [model.record.id for model in own if model.record.is_probe]
    is_small = any(each.gain > WORTHWHILE for each in probes)
    details = {
        f"{capitalised(each.text)}.": bool(own) or each is not best_probe for each in probes
    } | {
        f"{listed(probed)} {'has' if len(probed) == 1 else 'have'} the published weights with a "
        "linear probe, which was right on more of the search images than what was "
        "trained.": bool(probed)
    }
    return _Finding(
        "limit" if is_worse else "note" if is_small else "fine", finding, _text(details)
    )


_TOPICS: dict[str, Callable[[_Facts], _Finding | None]] = {
    "what was not measured": _unmeasured,
    "predicted latency": _predictions,
    "ranking": _ranking,
    "trained networks": _training,
    "images": _images,
    "comparing spaces": _spaces,
    "{judging} images": _judging_images,
    "linear probe": _probes,
    "length of the search": _search,
    "kernels": _kernels,
    "noise of the machine": _slowdown,
    "exported files": _exports,
    "failures": _failures,
    "test images": _test_images,
}
"""The topics in the order in which findings of one severity stand."""


def _by_size(value: float, notable: float, limiting: float) -> Severity:
    return "limit" if value >= limiting else "note" if value >= notable else "fine"


def _text(sentences: Mapping[str, object]) -> str:
    """Return the sentences whose values are true as one text."""
    return " ".join(sentence for sentence, holds in sentences.items() if holds)


def _build_command(run: Run) -> str:
    """Return the command that times kernels again of the first table of a run with unsure ones."""
    device, sizes = run.settings.device, run.record.settings
    tables = run.record.tables
    unsure = next(name for name, t in tables.items() if t.failed or t.unstable or t.disturbed)
    words = ["nas", "table", "build"]
    for name in run.record.spaces or {}:
        words += ["--space", str(run.path / "spaces" / f"{name}.py")]
    options: dict[str, object] = {} if sizes is None else sizes.model_dump()
    options |= {"runtime": device.runtime, "batch": device.batch, "out": device.tables}
    options |= device.runtime_options(unsure)
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--retry-failed"])
