"""Search spaces: tables of stages, the architectures in them, and their lowering to graphs."""

from nas.space.architecture import Architecture
from nas.space.choice import IDENTITY
from nas.space.library import load, names
from nas.space.reference import Reference
from nas.space.space import SearchSpace
from nas.space.stage import Stage

__all__ = ["IDENTITY", "Architecture", "Reference", "SearchSpace", "Stage", "load", "names"]
