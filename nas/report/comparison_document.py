"""`ComparisonDocument`: the JSON behind the page that compares runs.

The page holds it as `<script type="application/json" id="report">`. Accuracies are fractions, and
latencies are in microseconds. A value that is not known is null.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nas.files.documents import Count, Document, Fraction, Positive
from nas.report.document import NetworkPoint, TrainedPoint

MAX_VALUES_CHARACTERS = 60
"""Longest list of values that fits into a sentence."""


class FrontPoint(NetworkPoint):
    """A member of the front of a run, with the score that the search maximised as its accuracy.

    Attributes:
        basis: what the latency is, see `nas.run.candidates.Candidate.latency_basis`.
    """

    latency_us: Positive
    basis: str


class ComparedRun(Document):
    """One of the runs.

    Attributes:
        label: its name on the page.
        path: its folder, as it was given.
        facts: what may differ between runs, by name, in words.
        metric: what its accuracies are.
        basis: what the latencies of whole networks are.
        scored: number of architectures that have a score.
        front: its front, the fastest first.
        trained: its trained networks that were timed.
    """

    label: str
    path: str
    facts: dict[str, str]
    metric: str
    basis: str
    scored: Count
    front: list[FrontPoint]
    trained: list[TrainedPoint]


class CommonPoint(Document):
    """The latencies of an architecture in two runs.

    Attributes:
        id: as in `FrontPoint`.
        us: latency in each, in microseconds.
        basis: what each is: `measured`, `predicted` or `estimated: <by what>`.
        is_on_front: whether the architecture is on the front of each.
    """

    id: str
    us: tuple[Positive, Positive]
    basis: tuple[str, str]
    is_on_front: tuple[bool, bool]


class Agreement(Document):
    """How well two runs agree on which of the architectures that they share are faster.

    Attributes:
        basis: which latencies are compared.
        networks: number of architectures.
        kendall_tau: Kendall's tau-b of the order; null if it is undefined.
    """

    basis: Literal["measured", "predicted"]
    networks: Count
    kendall_tau: float | None


class Swap(Document):
    """Two architectures, one of which is faster in the first run and the other one in the second.

    Attributes:
        ids: the one that is faster in the first run, and the other one.
        ratios: latency of the slower one over that of the faster one, in each run.
        is_measured: whether all four latencies were measured.
    """

    ids: tuple[str, str]
    ratios: tuple[Positive, Positive]
    is_measured: bool


class Transfer(Document):
    """A member of the front of one run, on the device of another one.

    Attributes:
        id: as in `FrontPoint`.
        own_us: its latency in its own run.
        us: its latency in the other run.
        basis: what that latency is.
        accuracy: its score by the supernets of the other run; null if they did not score it and are
            other supernets.
        rival: the most accurate member of the other front that is not slower; null if all are.
        lost_accuracy: accuracy of the rival minus that of the member, a fraction.
        equal: the fastest member of the other front that is at least as accurate.
        latency_ratio: latency of the member over that of `equal`.
    """

    id: str
    own_us: Positive
    us: Positive
    basis: str
    accuracy: Fraction | None
    rival: str | None
    lost_accuracy: float | None
    equal: str | None
    latency_ratio: Positive | None


class Transfers(Document):
    """What the networks that were chosen in one run lose in another one.

    Attributes:
        source, target: positions of the runs.
        rows: the members of the front of the first with a known latency in the second.
        unknown: number of members without one.
        reason: why their latencies are not known; empty if they are.
        text: the losses in words.
    """

    source: Count
    target: Count
    rows: list[Transfer]
    unknown: Count
    reason: str
    text: str


class ComparedPair(Document):
    """What two of the runs have in common.

    Attributes:
        first, second: positions of the runs.
        common: number of architectures that both have a latency of.
        points: these architectures; of many, those on a front and some of the others.
        agreements: how well the runs agree on their order.
        swaps: the pairs of architectures on the fronts whose order differs most.
    """

    first: Count
    second: Count
    common: Count
    points: list[CommonPoint]
    agreements: list[Agreement]
    swaps: list[Swap]


class ComparisonDocument(Document):
    """What is known of several runs together.

    Attributes:
        runs: the runs in the order in which they were given.
        same, different: names of the facts that all runs share, and of those in which they differ.
        groups: positions of the runs whose accuracies are of the same images, by group.
        joint_front: number of members that each run has on the joint front of its group.
        notes: what limits the comparison, in sentences.
        pairs: the pairs of runs.
        transfers: the ordered pairs of runs of one group.
    """

    schema_version: Literal[2] = Field(default=2, alias="schema")
    runs: list[ComparedRun]
    same: list[str]
    different: list[str]
    groups: list[list[int]]
    joint_front: list[Count]
    notes: list[str]
    pairs: list[ComparedPair]
    transfers: list[Transfers]

    @property
    def differences(self) -> str:
        """What the runs differ in, with the values that are short: "runtime (tvm / litert)"."""
        texts = []
        for name in self.different:
            values = " / ".join(run.facts[name] for run in self.runs)
            texts.append(f"{name} ({values})" if len(values) <= MAX_VALUES_CHARACTERS else name)
        return "; ".join(texts)
