"""How far predictions were from measurements."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from nas.latency.check import kendall_tau


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured latency of `nets` networks; errors are fractions.

    `kendall_tau` is None where the order of fewer than three networks says nothing.
    """

    nets: int
    mape: float
    within_5_percent: float
    within_10_percent: float
    kendall_tau: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def agreement(rows: pd.DataFrame) -> Agreement | None:
    """Of all rows with both numbers; None if there are none."""
    both = rows.dropna(subset=["predicted_us", "measured_us"])
    if both.empty:
        return None
    error = np.abs(both["predicted_us"] / both["measured_us"] - 1).to_numpy()
    tau = kendall_tau(both["predicted_us"].to_list(), both["measured_us"].to_list())
    return Agreement(
        nets=len(both),
        mape=float(error.mean()),
        within_5_percent=float((error <= 0.05).mean()),
        within_10_percent=float((error <= 0.10).mean()),
        kendall_tau=tau if len(both) > 2 else None,
    )
