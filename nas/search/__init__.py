"""Multi-objective search for architectures: objectives, samplers, studies and Pareto fronts.

`run_search` runs a whole search, which can be interrupted and continued:

    result = run_search(space, {"error": error, "latency_us": latency_us}, trials=500)
    result.front

`GuidedSampler` and `suggest` do the same in an Optuna study of one's own:

    study = optuna.create_study(directions=["maximize", "minimize"], sampler=GuidedSampler(space))
    study.optimize(lambda trial: score(suggest(trial, space)), n_trials=500)
"""

from nas.search.budget import SearchProgress
from nas.search.feasibility import require_feasible
from nas.search.objectives import Estimate, Infeasible, Objective
from nas.search.pareto import hypervolume, non_dominated
from nas.search.proposals import SAMPLERS
from nas.search.sampler import GuidedSampler, suggest
from nas.search.study import SearchResult, front, run_search
from nas.search.trial import Trial

__all__ = [
    "SAMPLERS",
    "Estimate",
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
    "run_search",
    "suggest",
]
