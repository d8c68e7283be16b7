"""Hardware-aware search for small convolutional networks.

The public names below are imported when they are first used, so that `import nas` is fast and
brings in none of torch, TVM and Optuna.

Example:
    >>> import nas
    >>> space = nas.load_space("mobilenet_tiny", image_size=8, channels=1)
    >>> space.sample(seed=0).macs > 0
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nas.machine.home import ensure_home

__version__ = "0.1.0"

# Here, so that it precedes every import of TVM, by plug-ins and in other processes as well.
ensure_home()

if TYPE_CHECKING:
    from nas.data import ImageDataset, load_dataset
    from nas.deploy.benchmark import benchmark
    from nas.deploy.saved_model import load_model
    from nas.deploy.sustained import measure_sustained
    from nas.deploy.verify import verify
    from nas.graph import Graph
    from nas.job import load_job, retarget, run_job
    from nas.latency import (
        LatencyTable,
        Runtime,
        build_table,
        check_table,
        open_runtime,
        space_kernels,
    )
    from nas.opened_run import OpenedRun, open_run
    from nas.pretrained import PublishedWeights, read_weights
    from nas.run.run import Run
    from nas.search import GuidedSampler, Objective, run_search, suggest
    from nas.space import Architecture, SearchSpace, Stage, load_space, space_names
    from nas.supernet.evaluation import evaluate
    from nas.supernet.recipe import Recipe
    from nas.supernet.training import train
    from nas.supernet.weights import Supernet
    from nas.torch_network import to_torch

_MODULES = {
    "nas.data": ("ImageDataset", "load_dataset"),
    "nas.deploy.benchmark": ("benchmark",),
    "nas.deploy.saved_model": ("load_model",),
    "nas.deploy.sustained": ("measure_sustained",),
    "nas.deploy.verify": ("verify",),
    "nas.graph": ("Graph",),
    "nas.job": ("load_job", "retarget", "run_job"),
    "nas.latency": (
        "LatencyTable",
        "Runtime",
        "build_table",
        "check_table",
        "open_runtime",
        "space_kernels",
    ),
    "nas.opened_run": ("OpenedRun", "open_run"),
    "nas.pretrained": ("PublishedWeights", "read_weights"),
    "nas.run.run": ("Run",),
    "nas.search": ("GuidedSampler", "Objective", "run_search", "suggest"),
    "nas.space": ("Architecture", "SearchSpace", "Stage", "load_space", "space_names"),
    "nas.supernet.evaluation": ("evaluate",),
    "nas.supernet.recipe": ("Recipe",),
    "nas.supernet.training": ("train",),
    "nas.supernet.weights": ("Supernet",),
    "nas.torch_network": ("to_torch",),
}
"""The module that each public name comes from."""

_ORIGIN = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Architecture",
    "Graph",
    "GuidedSampler",
    "ImageDataset",
    "LatencyTable",
    "Objective",
    "OpenedRun",
    "PublishedWeights",
    "Recipe",
    "Run",
    "Runtime",
    "SearchSpace",
    "Stage",
    "Supernet",
    "benchmark",
    "build_table",
    "check_table",
    "evaluate",
    "load_dataset",
    "load_job",
    "load_model",
    "load_space",
    "measure_sustained",
    "open_run",
    "open_runtime",
    "read_weights",
    "retarget",
    "run_job",
    "run_search",
    "space_kernels",
    "space_names",
    "suggest",
    "to_torch",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _ORIGIN:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_ORIGIN[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
