"""Proposals of our own: a model of every objective, and the choices that improve the front most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.search.encoding import Array, Encoding
from nas.search.evolution import children, mutated
from nas.search.feasibility import Limits
from nas.search.objectives import Objective
from nas.search.pareto import non_dominated
from nas.search.posterior import Beliefs, Cheap, Observed, shapes_for
from nas.search.surrogate import Shape
from nas.search.trial import Trial
from nas.space import Architecture, SearchSpace

PARENTS = 24
"""Architectures whose neighbours are looked at, at most."""

POOL = 70
"""Neighbours that are looked at for a generation, in the first of its rounds."""

DRAWN = 40
"""Architectures that are drawn anew for a generation."""

ROUNDS = 2
"""Times that the best of a pool are varied once more."""

APPROACH = 12
"""Generations of an evolution towards the limits, where none that is drawn meets them."""

VARIED = 30
"""Architectures that a further round adds."""

PLANNED = 100
"""Architectures of a pool that are put in order."""

GROWTH = 10
"""A generation is one proposal, and one more for every so many trials that were completed."""

VAIN = 8
"""After so many proposals in vain there are others, which know what came of these."""

RESHAPED = 1.25
"""The models' shapes are chosen anew when there are so many times as many observations."""


class Guided:
    """Proposes the architectures that are expected to add most to the front's hypervolume.

    The first trials are each space's smallest and largest network and architectures drawn choice by
    choice. Then a Gaussian process an objective (`nas.search.surrogate`) learns from what was
    completed. Candidates are varied from the best ones with the space's own mutation and crossover,
    some are drawn anew; of these the best by expected hypervolume improvement are varied again, as
    in an evolution that costs no evaluation. Cheap objectives are not modelled but asked, limits on
    them included; expensive ones with a limit weigh by their chance to meet it.

    All follows from the completed trials, the ones that were ruled out before them and the seed,
    so a search that is continued proposes what the undisturbed one would.

    Args:
        spaces, objectives: of the search.
        seed: of the search.
        startup: trials before there is a model; by default five a space, ten at least.
    """

    def __init__(
        self,
        spaces: Sequence[SearchSpace],
        objectives: Sequence[Objective],
        *,
        seed: int,
        startup: int | None = None,
    ) -> None:
        self._spaces = {space.name: space for space in spaces}
        self._objectives = objectives
        self._seed = seed
        self._startup = max(10, 5 * len(spaces)) if startup is None else max(2, startup)
        self._encoding = Encoding(spaces)
        self._cheap = Cheap(objectives)
        self._limits = Limits(objectives)
        self._trials: list[Trial] = []
        self._completed: list[Trial] = []
        self._seen: list[int] = []
        self._known: set[Architecture] = set()
        self._since: list[Architecture] = []
        self._plan: tuple[int, list[Architecture]] = (-1, [])
        self._replans: dict[tuple[int, int, int], list[Architecture]] = {}
        self._shapes: tuple[int, list[Shape]] = (-1, [])

    def learn(self, trial: Trial) -> None:
        """Takes in a trial of any state, in the order in which they ended."""
        self._trials.append(trial)
        self._since.append(trial.architecture)
        if trial.state == "complete":
            self._completed.append(trial)
            self._seen.append(len(self._trials))
            # What was ruled out since is proposed once more to a search that is continued here, so
            # that it counts its attempts as the undisturbed one did.
            self._known.update(self._since)
            self._since = []
            self._replans.clear()

    def propose(self, attempt: int) -> Architecture:
        """The next architecture.

        Args:
            attempt: how many proposals since the last completed trial were known or ruled out.
        """
        count = len(self._completed)
        rng = np.random.default_rng((self._seed, count, attempt))
        if count < self._startup:
            return self._first(count, attempt, rng)
        ahead = self._ahead(attempt // VAIN)
        if attempt % VAIN < len(ahead):
            return ahead[attempt % VAIN]
        parent = self._completed[int(rng.integers(count))].architecture
        return mutated(parent, rng, 1 + attempt // 20)

    def _first(self, count: int, attempt: int, rng: np.random.Generator) -> Architecture:
        names = list(self._spaces)
        turn = count // len(names)
        space = self._spaces[names[(count + attempt) % len(names)]]
        if turn < 2 and not attempt:
            return (space.smallest, space.largest)[turn]
        if not self._limits.asked:
            return space.sample(rng, uniform_over="choices")
        drawn = [space.sample(rng, uniform_over="choices") for _ in range(16)]
        met = next((each for each in drawn if self._cheap.values(each) is not None), None)
        # Where limits leave hardly anything, drawing finds nothing.
        return met or self._limits.approached(drawn, rng, APPROACH)[0]

    def _observed(self, completed: int) -> Observed:
        return Observed(self._objectives, self._completed, self._trials).first(
            completed, self._seen[completed - 1]
        )

    def _ahead(self, rounds: int) -> list[Architecture]:
        """What to try after so many rounds of `VAIN` proposals since the last completed trial.

        Depends on what came of the proposals of these rounds, and not on what came of later ones.
        """
        count = len(self._completed)
        start = _generation(count, self._startup)
        if start != self._plan[0]:
            rng = np.random.default_rng((self._seed, start))
            self._plan = start, self._planned(self._observed(start), rng, _size(start))
        ahead = [each for each in self._plan[1] if each not in self._known]
        vain: set[Architecture] = set()
        learned = 0
        for number in range(1, rounds + 1):
            vain.update(ahead[:VAIN])
            ahead = ahead[VAIN:]
            since = [t for t in self._trials[self._seen[-1] :] if t.architecture in vain]
            if len(since) > learned:
                learned = len(since)
                ahead = [each for each in self._replanned(number, since) if each not in vain]
        return ahead

    def _replanned(self, number: int, since: Sequence[Trial]) -> list[Architecture]:
        """What to try when it is known what came of `since`, after the last completed trial."""
        count = len(self._completed)
        key = count, number, len(since)
        if key not in self._replans:
            rng = np.random.default_rng((self._seed, count, number, 0))
            observed = self._observed(count)
            more = Observed(self._objectives, observed.completed, [*observed.trials, *since])
            self._replans[key] = self._planned(more, rng, VAIN)
        return self._replans[key]

    def _planned(
        self, observed: Observed, rng: np.random.Generator, size: int
    ) -> list[Architecture]:
        """What to try in this order, the first `size` as if those before them had been tried."""
        reshaped = _reshaped(len(observed.completed), self._startup)
        if self._shapes[0] != reshaped:
            shapes = shapes_for(self._observed(reshaped), self._encoding)
            self._shapes = reshaped, shapes
        beliefs = Beliefs(observed, self._encoding, self._cheap, self._shapes[1])
        pool = self._pool(observed, rng)
        if not pool:
            return []
        promise = beliefs.about(pool).promise()
        taken = {each.architecture for each in observed.trials}
        for _ in range(ROUNDS):
            top = [pool[at] for at in np.argsort(-promise, kind="stable")[:10]]
            more = self._varied(top, VARIED, taken | set(pool), rng)
            if not more:
                break
            promise = np.concatenate([promise, beliefs.about(more).promise()])
            pool += more
        best = [pool[at] for at in np.argsort(-promise, kind="stable")[:PLANNED]]
        return _in_turn(best, beliefs, size)

    def _pool(self, observed: Observed, rng: np.random.Generator) -> list[Architecture]:
        """Candidates: varied from the best ones, and drawn anew; none is known or ruled out."""
        taken = {each.architecture for each in observed.trials}
        parents = [
            observed.completed[at].architecture for at in _best(observed.values(), PARENTS, rng)
        ]
        found = dict.fromkeys(self._varied(parents, POOL, taken, rng))
        names = list(self._spaces)
        for number in range(DRAWN):
            drawn = self._spaces[names[number % len(names)]].sample(rng, uniform_over="choices")
            if drawn not in taken and self._cheap.values(drawn) is not None:
                found[drawn] = None
        return list(found)

    def _varied(
        self,
        parents: Sequence[Architecture],
        count: int,
        taken: set[Architecture],
        rng: np.random.Generator,
    ) -> list[Architecture]:
        """New architectures near some parents, fewer than `count` where most are taken."""
        found: dict[Architecture, None] = {}
        for child in children(parents, 2 * count, rng):
            if child not in taken and child not in found and self._cheap.values(child) is not None:
                found[child] = None
                if len(found) == count:
                    break
        return list(found)


def _in_turn(pool: Sequence[Architecture], beliefs: Beliefs, count: int) -> list[Architecture]:
    """The first `count` each as if those before it had been tried; then the others as they come."""
    prospects = beliefs.about(pool)
    left = np.ones(len(pool), dtype=bool)
    found: list[int] = []
    for _ in range(min(count, len(pool))):
        at = int(np.argmax(np.where(left, prospects.promise(), -np.inf)))
        found.append(at)
        left[at] = False
        prospects.suppose(at)
    return [pool[at] for at in (*found, *np.flatnonzero(left))]


def _best(values: Array, count: int, rng: np.random.Generator) -> list[int]:
    """Positions of the front, and of the layers behind it, until there are `count`; mixed."""
    left = np.arange(len(values))
    found: list[int] = []
    while len(found) < count and len(left):
        layer = left[non_dominated(values[left])]
        if len(found) + len(layer) > count and found:
            layer = rng.permutation(layer)[: count - len(found)]
        found += layer.tolist()
        left = np.setdiff1d(left, layer)
    mixed: list[int] = rng.permutation(found).tolist()
    return mixed


def _size(start: int) -> int:
    """How many proposals a generation has that begins with `start` completed trials."""
    return 1 + start // GROWTH


def _generation(count: int, startup: int) -> int:
    """The number of completed trials with which the present generation began."""
    start = startup
    while start + _size(start) <= count:
        start += _size(start)
    return start


def _reshaped(start: int, startup: int) -> int:
    """The number of completed trials from which the models' shapes are chosen."""
    found = startup
    while int(found * RESHAPED) + 1 <= start:
        found = int(found * RESHAPED) + 1
    return found
