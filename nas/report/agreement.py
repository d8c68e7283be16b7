"""How well the table's predictions agree with the networks that a run timed as wholes."""

from __future__ import annotations

import pandas as pd

from nas.latency.agreement import Agreement
from nas.latency.agreement import agreement as of_latencies


def agreement(rows: pd.DataFrame, *, pace: float = 1.0) -> Agreement | None:
    """Of all rows with both numbers; None if there are none.

    `pace` is what predictions are multiplied with: how much longer than in the table kernels took
    while the networks were timed.
    """
    both = rows.dropna(subset=["predicted_us", "measured_us"])
    if both.empty:
        return None
    predicted, measured = (both[name].to_numpy(float) for name in ("predicted_us", "measured_us"))
    return of_latencies(pace * predicted, measured)
