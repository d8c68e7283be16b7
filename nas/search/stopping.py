"""The stopping rule of a search with a model: the search ends when further trials promise little.

A search stops when the hypervolume that its model expects from the next trials has been below a
threshold for several plans in a row. To end a search by what its acquisition function expects is
an old rule: Jones et al. 1998, "Efficient global optimization of expensive black-box functions",
stop when the expected improvement is below 1% of the best value. Newer rules bound the regret by
the posterior (Makarova et al. 2022, "Automatic termination for hyperparameter optimization";
Ishibashi et al. 2023, "A stopping criterion for Bayesian optimization by the gap of expected
minimum simple regrets"). The rule here is that of Jones et al. for a Pareto front: the hypervolume
takes the place of the best value, and a plan of a tenth of the trials so far that of one candidate,
because one more candidate always promises little. The number of candidates is a share of the trials
so that the rule weighs a gain against the time that the search has taken already.

The threshold was chosen on three problems whose true front is known, see docs/search.md.
"""

from __future__ import annotations

from typing import Literal

Stall = int | Literal["auto"]
"""A number of trials without a better front, or "auto" for the rule of the model."""

MAX_EXPECTED_GAIN = 0.001
"""Share of the front's hypervolume that a plan has to promise for the search to go on."""

PLANS_IN_A_ROW = 3
"""Number of latest plans that must all promise less.

A plan sees a sample of the candidates and can miss a region, and hyperparameters that were fitted
anew can be surer than the data allow.
"""

MIN_TRIALS_PER_SPACE = 20
"""Completed trials before a search may end by its model, for each space."""

REASON = f"10% more trials are expected to improve the front by less than {MAX_EXPECTED_GAIN:.1%}"
"""The reason of such an end, for messages and reports."""
