"""The Pareto front of a run, over all objectives of its job and within its limits."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas.run.candidates import latency_us, of_table, score
from nas.run.settings import DEVICE_LATENCY, SearchSettings
from nas.run.trained import TrainedRecord
from nas.search import non_dominated
from nas.statistics import spread


class RowObjective(NamedTuple):
    """An objective or a limit of a job, with its values for rows of candidates.

    Attributes:
        label: name of the objective, for a sentence.
        values: values that are minimised: those of a maximised column are negative.
        limit: highest of these values that is allowed; None for no limit.
        is_optimised: whether it is an objective; otherwise it is a limit only.
    """

    label: str
    values: pd.Series
    limit: float | None = None
    is_optimised: bool = True


def row_objectives(rows: pd.DataFrame, search: SearchSettings) -> list[RowObjective]:
    """Return the objectives and limits of a job on its candidates: latency, then the error.

    The latencies on further devices, the further objectives and the limits follow.

    Args:
        rows: candidates of a run.
        search: objectives and limits of its job.
    """

    def limit_us(max_latency_ms: float | None) -> float | None:
        return None if max_latency_ms is None else 1000 * max_latency_ms

    objectives = [
        RowObjective("latency", latency_us(rows), limit_us(search.max_latency_ms)),
        RowObjective("accuracy", 1 - score(rows)),
    ]
    for device in search.device:
        column = f"{DEVICE_LATENCY}{device.name}"
        values = rows.reindex(columns=[column])[column]
        limit = limit_us(device.max_latency_ms)
        objectives.append(RowObjective(f"latency on {device.name}", values, limit))
    optimised, limits = search.optimised_costs, search.cost_limits
    for name, cost in search.costs.items():
        if name in optimised or name in limits:
            sign = -1.0 if cost.is_maximised else 1.0
            label = cost.label.split(",")[0]
            largest = sign * limits[name] if name in limits else None
            values = sign * rows.reindex(columns=[name])[name]
            objectives.append(RowObjective(label, values, largest, name in optimised))
    return objectives


def _points(rows: pd.DataFrame, search: SearchSettings) -> NDArray[np.float64]:
    """Return the values of the objectives of rows, all minimised, latency first, then the error."""
    columns = [o.values.astype(float) for o in row_objectives(rows, search) if o.is_optimised]
    return np.column_stack(columns)


def front(rows: pd.DataFrame, search: SearchSettings) -> pd.DataFrame:
    """Return the rows on the Pareto front of a job's objectives within its limits, fastest first.

    Only complete rows are compared. If any of the rows has a measured latency, only those that have
    one are compared, so that a prediction never beats a measurement.

    Args:
        rows: candidates of a run, or of one of its spaces.
        search: objectives and limits of its job.
    """
    is_compared = _are_within_limits(rows, search)
    # The choice between measured and predicted latency is that of all rows.
    points = _points(rows, search)[is_compared.to_numpy()]
    return rows[is_compared].iloc[non_dominated(points)]


NEAR_SHARE = 0.05
"""Share of a cost that may separate a network from the front: predictions err by some percent."""

NEAR_ACCURACY = 0.005
"""Accuracy that may separate a network from the front: 1,000 images cannot tell it."""


def near_front(rows: pd.DataFrame, search: SearchSettings) -> pd.Series:
    """Return which rows are on the front of the predictions or near it.

    A network is near it if `NEAR_SHARE` less of every cost and `NEAR_ACCURACY` more accuracy would
    put it there. All rows are compared by predicted latency.

    Args:
        rows: candidates of a run, or of one of its spaces.
        search: objectives and limits of its job.
    """
    rows = rows.assign(measured_us=np.nan)
    is_compared = _are_within_limits(rows, search)
    points = _points(rows, search)[is_compared.to_numpy()]
    better = points - NEAR_SHARE * np.abs(points)
    better[:, 1] = points[:, 1] - NEAR_ACCURACY
    is_near = np.full(len(points), True)
    for member in points[non_dominated(points)]:
        is_near &= ~((member <= better).all(axis=1) & (member < better).any(axis=1))
    near = pd.Series(False, rows.index)
    near[is_compared] = is_near
    return near


def _are_within_limits(rows: pd.DataFrame, search: SearchSettings) -> pd.Series:
    """Return which rows are complete, have a value of every objective, and meet every limit."""
    is_within = rows["state"] == "complete"
    for objective in row_objectives(rows, search):
        is_within &= objective.values.notna()
        if objective.limit is not None:
            is_within &= objective.values <= objective.limit
    return is_within


def without_second_dtypes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a front, of a network in two dtypes only the faster one.

    A training is for both dtypes, and gives files of both.
    """
    networks: dict[tuple[object, ...], str] = {}
    for candidate in of_table(rows):
        own = candidate.architecture
        choices = [pair for pair in own.choices.items() if pair[0] != "dtype"]
        networks.setdefault((own.space, *choices), candidate.digest)
    return rows[rows["digest"].isin(networks.values())]


def representatives(
    members: pd.DataFrame, search: SearchSettings, count: int, first: Collection[str] = ()
) -> list[str]:
    """Return the digests of members that represent a front, the most accurate first.

    The best member in each objective is among them, the most accurate one before the others; the
    rest lie at even distances in the order of accuracy. Members among `first` take the places of
    others, so that a run that continues does only what is missing.

    Args:
        members: rows of a front.
        search: objectives and limits of the job.
        count: number of members; fewer are returned of a smaller front.
        first: digests of networks that are chosen before others.
    """
    if members.empty or count < 1:
        return []
    points = _points(members, search)
    best = np.lexsort((points[:, 0], points[:, 1])).tolist()
    others = [at for at in range(points.shape[1]) if at != 1]
    ends = dict.fromkeys([best[0], *[best[int(points[best, at].argmin())] for at in others]])
    chosen = list(ends)[:count]
    between = [position for position in spread(best, count) if position not in ends]
    chosen += spread(between, count - len(chosen))
    digests = members["digest"].to_numpy()
    by_accuracy = digests[best].tolist()
    order = list(dict.fromkeys([*digests[chosen].tolist(), *by_accuracy]))
    order.sort(key=lambda digest: digest not in first)
    return sorted(order[:count], key=by_accuracy.index)


def behind(rows: pd.DataFrame, members: pd.DataFrame, search: SearchSettings) -> list[str]:
    """Return the digests of rows within the limits by how near they are to a front, nearest first.

    The distance of a candidate is the ratio of its predicted latency to that of the fastest front
    member that is as good in all other objectives: the error of the prediction that would put it
    on the front.

    Args:
        rows: candidates with predicted latencies.
        members: the rows on their front.
        search: objectives and limits of the job.
    """
    rows = rows[_are_within_limits(rows, search)]
    points, on_front = _points(rows, search), _points(members, search)
    fastest = np.full(len(points), np.inf)
    for latency, *others in on_front.tolist():
        is_as_good = (np.array(others) <= points[:, 1:]).all(axis=1)
        fastest[is_as_good] = np.minimum(fastest[is_as_good], latency)
    order = np.argsort(points[:, 0] / fastest, kind="stable")
    return rows["digest"].to_numpy()[order].tolist()


def dominated_after_training(rows: pd.DataFrame, search: SearchSettings) -> dict[str, str]:
    """Return the trained networks that training moved off the front, each with a better one.

    Networks that were trained alike are compared with each other alone, by all objectives, of which
    the accuracy is that on the images that judge them.

    Args:
        rows: candidates of a run.
        search: objectives and limits of its job.

    Returns:
        By ID, the ID of the most accurate network of the same recipe that is not worse in any
        objective.
    """
    points = _points(rows, search)
    points[:, 1] = 1 - rows["trained_accuracy"]
    is_known = ~np.isnan(points).any(axis=1)
    points, names = points[is_known], rows["id"].to_numpy()[is_known]
    recipes = rows["recipe"].to_numpy()[is_known]
    # Of networks that are equal in every objective, the first one dominates the others.
    order = np.lexsort(points.T[::-1])
    points, names, recipes = points[order], names[order].tolist(), recipes[order]
    dominated: dict[str, str] = {}
    for position, point in enumerate(points):
        is_rival = (points[:position] <= point).all(axis=1)
        rivals = np.flatnonzero(is_rival & (recipes[:position] == recipes[position]))
        if rivals.size:
            dominated[names[position]] = names[rivals[points[rivals, 1].argmin()]]
    return dominated


def with_trained(
    rows: pd.DataFrame, trained: Mapping[str, TrainedRecord], search: SearchSettings
) -> pd.DataFrame:
    """Return candidates with the results of those that were trained to the end.

    Args:
        rows: candidates of a run.
        trained: records of trained networks by digest.
        search: objectives and limits of its job.
    """
    records = [trained.get(digest) for digest in rows["digest"]]
    holdout = [None if each is None else each.holdout.accuracy for each in records]
    test = [None if each is None else each.test.accuracy for each in records]
    recipes = [None if each is None else str(each.recipe) for each in records]
    rows = rows.assign(
        trained_accuracy=pd.Series(holdout, rows.index, dtype=float),
        test_accuracy=pd.Series(test, rows.index, dtype=float),
        recipe=pd.Series(recipes, rows.index, dtype=object),
    )
    dominated = dominated_after_training(rows, search)
    better = [dominated.get(name) for name in rows["id"]]
    return rows.assign(dominated_by=pd.Series(better, rows.index, dtype=object))
