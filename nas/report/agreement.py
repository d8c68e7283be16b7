"""How well the table's predictions agree with the networks that a run timed as wholes."""

from __future__ import annotations

import pandas as pd

from nas.statistics import Agreement
from nas.statistics import agreement as of_latencies


def agreement(rows: pd.DataFrame) -> Agreement | None:
    """Of all rows with both numbers; None if there are none."""
    both = rows.dropna(subset=["predicted_us", "measured_us"])
    if both.empty:
        return None
    return of_latencies(both["predicted_us"].to_numpy(float), both["measured_us"].to_numpy(float))
