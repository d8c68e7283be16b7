"""The search: objectives, the loop over Optuna's proposals, and Pareto fronts."""

from nas.search.objectives import Infeasible, Objective
from nas.search.pareto import hypervolume, non_dominated
from nas.search.study import SearchResult, front, search
from nas.search.trials import Trial

__all__ = [
    "Infeasible",
    "Objective",
    "SearchResult",
    "Trial",
    "front",
    "hypervolume",
    "non_dominated",
    "search",
]
