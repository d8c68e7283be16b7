"""Search spaces: tables of stages, the architectures in them, and their lowering to graphs."""

from nas.space.architecture import Architecture
from nas.space.choice import IDENTITY
from nas.space.library import load_definition, load_space, space_names
from nas.space.limits import Limit, sample_within
from nas.space.reference import Reference
from nas.space.space import SearchSpace
from nas.space.stage import Stage
from nas.space.variation import crossover, mutate

__all__ = [
    "IDENTITY",
    "Architecture",
    "Limit",
    "Reference",
    "SearchSpace",
    "Stage",
    "crossover",
    "load_definition",
    "load_space",
    "mutate",
    "sample_within",
    "space_names",
]
