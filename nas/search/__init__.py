"""The search: objectives, the loop over Optuna's proposals, and Pareto fronts."""

from nas.search.budget import SearchProgress
from nas.search.feasibility import require_feasible
from nas.search.objectives import Infeasible, Objective
from nas.search.pareto import hypervolume, non_dominated
from nas.search.proposals import SAMPLERS
from nas.search.sampler import GuidedSampler, suggest
from nas.search.study import SearchResult, front, search
from nas.search.trial import Trial

__all__ = [
    "SAMPLERS",
    "GuidedSampler",
    "Infeasible",
    "Objective",
    "SearchProgress",
    "SearchResult",
    "Trial",
    "front",
    "hypervolume",
    "non_dominated",
    "require_feasible",
    "search",
    "suggest",
]
