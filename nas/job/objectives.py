"""The objectives of a job's search: latencies from tables, counts and the validation error."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import partial

from nas.errors import KernelError, MeasurementError
from nas.figures import COUNTS, Figure, predicted_latency
from nas.job.inputs import require_complete
from nas.latency import LatencyTable
from nas.run.objectives import DEVICE_LATENCY, device_figures
from nas.run.run import Run
from nas.search import Estimate, Infeasible, Objective
from nas.search.objectives import IsHopeless, Score
from nas.space import Architecture
from nas.supernet.evaluation import (
    RoundsScore,
    evaluate_in_rounds,
    round_ends,
    sampling_variance,
)
from nas.supernet.records import ScoreCorrection
from nas.supernet.weights import Supernet

LATENCY = "predicted_us"
"""Name of the objective that is the latency on the job's own device."""

PREDICTED = predicted_latency(LATENCY)
"""The figure of this objective."""

ERROR = "validation_error"
"""Name of the error of an architecture in its supernet."""

CORRECTED_ERROR = "corrected_error"
"""Name of that error after its correction for size, which such a search minimises instead."""

IMAGES = "score_images"
"""Name of the number of images on which an architecture was scored; see `evaluate_in_rounds`.

It is recorded only, and so is the error in the supernet beside its correction.
"""

DEVICE_FREE = (ERROR, CORRECTED_ERROR, *COUNTS)
"""Names of the objectives whose values are the same for all devices."""


_LEAST_DEVIATION = 1e-6
"""A score on a part of the images stays an estimate where the loss of int8 leaves no accuracy."""


class JobObjectives:
    """The objectives of a job's search.

    Args:
        run: the run with its spaces, latency table and settings.
        supernets: the trained supernets by space; without them only the cheap objectives work.
        correction: correction of the supernets' scores; None for none.

    Raises:
        TableError: the table of another device lacks kernels of the spaces.
    """

    def __init__(
        self,
        run: Run,
        supernets: Mapping[str, Supernet],
        correction: ScoreCorrection | None = None,
    ) -> None:
        self._run, self._supernets, self._correction = run, supernets, correction
        self._batch = run.settings.device.batch
        self._rounds: dict[tuple[object, ...], list[RoundsScore]] = {}
        """The rounds of each network, whose score is the same in every dtype."""
        self._figures: dict[str, Mapping[str, float]] = {}
        search = run.settings.search
        self._others = {
            figure.name: LatencyTable.open(device.table)
            for figure, device in zip(device_figures(search), search.device, strict=True)
        }
        """Table of each further device, by the column of its latency."""
        for table in self._others.values():
            require_complete(table, run.spaces.values(), self._batch)

    def all(self) -> list[Objective]:
        """Return the latency on every device, the counts with a limit, and the validation error."""
        latency, _, *others = self._run.objectives
        limit_us = None if latency.limit is None else 1000 * latency.limit
        objectives = [self._latency(PREDICTED, None, limit_us)]
        for figure, limit, is_optimised in others:
            name = figure.name
            if name in self._others:
                objectives.append(self._latency(figure, self._others[name], limit))
                continue
            objective = Objective.of_each(
                name,
                partial(count if name in COUNTS else self._network_figure, name),
                direction="maximize" if figure.is_maximised else "minimize",
                cheap=name in COUNTS,
                limit=limit,
                limit_only=not is_optimised,
            )
            objectives.append(objective)
        main = ERROR if self._correction is None else CORRECTED_ERROR
        objectives.append(
            Objective.of_each(main, self._score_error, score_in_rounds=self._score_error_in_rounds)
        )
        return objectives

    @property
    def _images(self) -> int:
        """Number of validation images that score an architecture, unless it is hopeless."""
        return self._run.record.score_images or len(self._run.data.search)

    def fronts(self) -> dict[str, list[Objective]]:
        """Return the objectives of each further device's own front.

        These are the objectives of the job with the latency on this device alone.
        """
        latencies = {LATENCY, *self._others}
        return {
            name.removeprefix(DEVICE_LATENCY): [
                o for o in self.all() if o.name == name or o.name not in latencies
            ]
            for name in self._others
        }

    def fixed_settings(self) -> dict[str, str]:
        """Return the devices and the batch size, which may not change while a search continues."""
        own = self._run.tables
        names = ["device", *(f"device in {dtype}" for dtype in list(own)[1:])]
        tables = dict(zip(names, own.values(), strict=True))
        tables |= {
            f"device of {name.removeprefix(DEVICE_LATENCY)}": table
            for name, table in self._others.items()
        }
        facts = {name: _device_digest(table) for name, table in tables.items()}
        return {**facts, "batch": str(self._batch)}

    def _latency(
        self, figure: Figure, table: LatencyTable | None, limit_us: float | None
    ) -> Objective:
        """Return the latency by a table, or on the job's own device in the network's dtype."""
        predict = partial(self._predict, table)
        return Objective.of_each(figure.name, predict, cheap=True, limit=limit_us, figure=figure)

    def _predict(self, table: LatencyTable | None, architecture: Architecture) -> Score:
        if table is None:
            table = self._run.tables[self._run.dtype_of(architecture)]
        try:
            return table.predict(architecture, self._batch).latency_us
        except KernelError as error:
            return Infeasible(error.message)

    def _network_figure(self, name: str, architecture: Architecture) -> Score:
        """Return a figure of a network, which is computed once."""
        digest = architecture.digest
        if digest not in self._figures:
            try:
                table = self._run.tables[self._run.dtype_of(architecture)]
                self._figures[digest] = table.figures(architecture.graph, self._batch)
            except (KernelError, MeasurementError) as error:
                return Infeasible(error.message)
        return float(self._figures[digest][name])

    def _score_error(self, architecture: Architecture) -> Score:
        return self._score_error_in_rounds(architecture, lambda error: False)

    def _score_error_in_rounds(
        self, architecture: Architecture, is_hopeless: IsHopeless
    ) -> Estimate:
        """Score an architecture in its supernet, on a part of the images if it is hopeless."""
        choices = [pair for pair in architecture.choices.items() if pair[0] != "dtype"]
        rounds = self._rounds.setdefault((architecture.space.name, *choices), [])
        score = evaluate_in_rounds(
            self._supernets[architecture.space.name],
            architecture,
            self._run.data,
            lambda accuracy: is_hopeless(self._error(architecture, accuracy)),
            rounds,
            self._images,
        )
        recorded: dict[str, float] = {}
        if self._correction is not None:
            recorded[ERROR] = 1 - self._run.record.expected(score.accuracy, architecture)
        if self._images < len(self._run.data.search) or len(round_ends(self._images)) > 1:
            recorded[IMAGES] = float(score.images)
        error, variance = self._error(architecture, score.accuracy), 0.0
        if score.images < self._images:
            deviation = math.sqrt(sampling_variance(score.correct, score.images, self._images))
            # The error is no linear function of the accuracy if it is corrected for size.
            worse = self._error(architecture, max(0.0, score.accuracy - deviation))
            better = self._error(architecture, min(1.0, score.accuracy + deviation))
            variance = max(worse - better, _LEAST_DEVIATION) ** 2 / 4
        return Estimate(error, variance=variance, recorded=recorded)

    def _error(self, architecture: Architecture, accuracy: float) -> float:
        """Return the error that the search minimises, from the accuracy in the supernet."""
        accuracy = self._run.record.expected(accuracy, architecture)
        if self._correction is None:
            return 1 - accuracy
        space = architecture.space.name
        return 1 - self._correction.correct(accuracy, architecture.macs, space)


def count(name: str, architecture: Architecture) -> float:
    """Return one of `nas.figures.COUNTS` of an architecture."""
    return float(getattr(architecture.graph, name))


def _device_digest(table: LatencyTable) -> str:
    """Return a digest of the part of a fingerprint that decides latencies."""
    device = table.device.to_json()
    del device["recorded"]
    text = json.dumps(device, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
