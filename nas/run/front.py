"""The Pareto front of a run, over all objectives of its job and within its limits."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from nas.figures import ACCURACY, LATENCY, Figure
from nas.run.candidates import latency_us, of_table, score
from nas.run.objectives import RunObjective
from nas.run.trained import TrainedRecord
from nas.search import non_dominated
from nas.statistics import spread


def _values(rows: pd.DataFrame, figure: Figure) -> pd.Series:
    """Return the values of a figure; NaN where it is not known."""
    if figure is LATENCY:
        return latency_us(rows).astype(float) / 1000
    if figure is ACCURACY:
        return score(rows).astype(float)
    return rows.reindex(columns=[figure.name])[figure.name].astype(float)


def _points(rows: pd.DataFrame, objectives: Sequence[RunObjective]) -> NDArray[np.float64]:
    """Return the values of the objectives, all minimised: the latency, minus the accuracy, others.

    Array `rows x objectives`.
    """
    columns = [
        -_values(rows, each.figure) if each.figure.is_maximised else _values(rows, each.figure)
        for each in objectives
        if each.is_optimised
    ]
    return np.column_stack(columns)


def front(rows: pd.DataFrame, objectives: Sequence[RunObjective]) -> pd.DataFrame:
    """Return the rows on the Pareto front of a job's objectives within its limits, fastest first.

    Only complete rows are compared. If any of the rows has a measured latency, only those that have
    one are compared, so that a prediction never beats a measurement.

    Args:
        rows: candidates of a run, or of one of its spaces.
        objectives: objectives and limits of the run, see `run_objectives`.
    """
    is_compared = _are_within_limits(rows, objectives)
    # The choice between measured and predicted latency is that of all rows.
    points = _points(rows, objectives)[is_compared.to_numpy()]
    return rows[is_compared].iloc[non_dominated(points)]


NEAR_SHARE = 0.05
"""Share of a cost that may separate a network from the front: predictions err by some percent."""

NEAR_ACCURACY = 0.005
"""Accuracy that may separate a network from the front: 1,000 images cannot tell it."""


def near_front(rows: pd.DataFrame, objectives: Sequence[RunObjective]) -> pd.Series:
    """Return which rows are on the front of the predictions or near it.

    A network is near it if `NEAR_SHARE` less of every cost and `NEAR_ACCURACY` more accuracy would
    put it there. All rows are compared by predicted latency.

    Args:
        rows: candidates of a run, or of one of its spaces.
        objectives: objectives and limits of the run, see `run_objectives`.
    """
    rows = rows.assign(measured_us=np.nan)
    is_compared = _are_within_limits(rows, objectives)
    points = _points(rows, objectives)[is_compared.to_numpy()]
    better = points - NEAR_SHARE * np.abs(points)
    better[:, 1] = points[:, 1] - NEAR_ACCURACY
    is_near = np.full(len(points), True)
    for member in points[non_dominated(points)]:
        is_near &= ~((member <= better).all(axis=1) & (member < better).any(axis=1))
    near = pd.Series(False, rows.index)
    near[is_compared] = is_near
    return near


def _are_within_limits(rows: pd.DataFrame, objectives: Sequence[RunObjective]) -> pd.Series:
    """Return which rows are complete, have a value of every objective, and meet every limit."""
    is_within = rows["state"] == "complete"
    for figure, limit, _ in objectives:
        values = _values(rows, figure)
        is_within &= values.notna()
        if limit is not None:
            is_within &= values >= limit if figure.is_maximised else values <= limit
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
    members: pd.DataFrame,
    objectives: Sequence[RunObjective],
    count: int,
    first: Collection[str] = (),
) -> list[str]:
    """Return the digests of members that represent a front, the most accurate first.

    The best member in each objective is among them, the most accurate one before the others; the
    rest lie at even distances in the order of accuracy. Members among `first` take the places of
    others, so that a run that continues does only what is missing.

    Args:
        members: rows of a front.
        objectives: objectives and limits of the run.
        count: number of members; fewer are returned of a smaller front.
        first: digests of networks that are chosen before others.
    """
    if members.empty or count < 1:
        return []
    points = _points(members, objectives)
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


def behind(
    rows: pd.DataFrame, members: pd.DataFrame, objectives: Sequence[RunObjective]
) -> list[str]:
    """Return the digests of rows within the limits by how near they are to a front, nearest first.

    The distance of a candidate is the ratio of its predicted latency to that of the fastest front
    member that is as good in all other objectives: the error of the prediction that would put it
    on the front.

    Args:
        rows: candidates with predicted latencies.
        members: the rows on their front.
        objectives: objectives and limits of the run.
    """
    rows = rows[_are_within_limits(rows, objectives)]
    points, on_front = _points(rows, objectives), _points(members, objectives)
    fastest = np.full(len(points), np.inf)
    for latency, *others in on_front.tolist():
        is_as_good = (np.array(others) <= points[:, 1:]).all(axis=1)
        fastest[is_as_good] = np.minimum(fastest[is_as_good], latency)
    order = np.argsort(points[:, 0] / fastest, kind="stable")
    return rows["digest"].to_numpy()[order].tolist()


def accuracy_gaps(rows: pd.DataFrame, objectives: Sequence[RunObjective]) -> pd.Series:
    """Return how much accuracy each row lacks to be on the front; NaN beyond the limits.

    It is the difference from the most accurate row that is as good in all other objectives.
    """
    is_compared = _are_within_limits(rows, objectives)
    points = _points(rows[is_compared], objectives)
    costs, errors = np.delete(points, 1, axis=1), points[:, 1]
    gaps = [
        error - errors[(costs <= own).all(axis=1)].min()
        for own, error in zip(costs, errors, strict=True)
    ]
    return pd.Series(gaps, rows.index[is_compared], dtype=float).reindex(rows.index)


def dominated_after_training(
    rows: pd.DataFrame, objectives: Sequence[RunObjective]
) -> dict[str, str]:
    """Return the trained networks that training moved off the front, each with a better one.

    Networks that were trained alike are compared with each other alone, by all objectives, of which
    the accuracy is that on the images that judge them.

    Args:
        rows: candidates of a run.
        objectives: objectives and limits of the run, see `run_objectives`.

    Returns:
        By ID, the ID of the most accurate network of the same recipe that is not worse in any
        objective.
    """
    points = _points(rows, objectives)
    points[:, 1] = -rows["trained_accuracy"]
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
    rows: pd.DataFrame, trained: Mapping[str, TrainedRecord], objectives: Sequence[RunObjective]
) -> pd.DataFrame:
    """Return candidates with the results of those that were trained to the end.

    Args:
        rows: candidates of a run.
        trained: records of trained networks by digest.
        objectives: objectives and limits of the run, see `run_objectives`.
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
    dominated = dominated_after_training(rows, objectives)
    better = [dominated.get(name) for name in rows["id"]]
    return rows.assign(dominated_by=pd.Series(better, rows.index, dtype=object))
