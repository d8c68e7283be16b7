"""The overnight job: a validated job file, and its stages in order.

Example:
    >>> from nas.job import job_path, load_job
    >>> settings = load_job(job_path("quickstart"))
    >>> settings.name
    'quickstart'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nas.run.progress import JobProgress, SilentProgress

if TYPE_CHECKING:
    from nas.job.retargeting import retarget
    from nas.job.running import JobResult, plan_job, run_job, search_job
    from nas.job.settings import job_path, load_job
    from nas.run.settings import JobSettings

__all__ = [
    "JobProgress",
    "JobResult",
    "JobSettings",
    "SilentProgress",
    "job_path",
    "load_job",
    "plan_job",
    "retarget",
    "run_job",
    "search_job",
]

_MODULES = {
    "JobResult": "nas.job.running",
    "JobSettings": "nas.run.settings",
    "job_path": "nas.job.settings",
    "load_job": "nas.job.settings",
    "plan_job": "nas.job.running",
    "retarget": "nas.job.retargeting",
    "run_job": "nas.job.running",
    "search_job": "nas.job.running",
}
"""Modules of names that are imported when they are used: commands start without their imports."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'nas.job' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
