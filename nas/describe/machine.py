"""What this machine can do: processor, runtimes, file formats and noise, for `nas doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nas import this_machine
from nas.deploy.formats import all_formats
from nas.deploy.formats.base import package_versions
from nas.latency import available_runtimes
from nas.latency.timing import MAX_SPREAD, measure_noise


def describe_machine() -> dict[str, Any]:
    """Return what `nas doctor --json` prints."""
    processor, features = this_machine.processor()
    return {
        "processor": processor,
        "features": list(features),
        "machine": this_machine.recorded_facts(),
        "training_devices": _training_devices(),
        "runtimes": [asdict(availability) for availability in available_runtimes()],
        "formats": describe_formats(),
        "noise": describe_noise(),
    }


def describe_formats() -> list[dict[str, Any]]:
    """Return the file formats of exported models: versions of their packages, or how to get them.

    `runs_here` says whether a usable format can also be run on this operating system, as its
    verification needs.
    """
    return [
        {
            "name": each.name,
            "precision": each.precision,
            "usable": not each.missing_packages,
            "runs_here": each.runs_here,
            "versions": package_versions(each.packages),
            "install": each.install_command if each.missing_packages else "",
        }
        for each in all_formats()
    ]


def describe_noise() -> dict[str, Any]:
    """Return how much repeated timings of the same work differ on this machine.

    `spread` is the interquartile range over the median, and `worst` the slowest sample over the
    median. Records of a table whose spread is above `unstable_above` are marked unstable.
    """
    noise = measure_noise()
    return {
        "spread": round(noise.spread, 4),
        "worst": round(max(noise.samples_us) / noise.latency_us, 3),
        "unstable_above": MAX_SPREAD,
    }


def _training_devices() -> Sequence[str]:
    import torch

    cpu = f"cpu, {torch.get_num_threads()} threads (torch {torch.__version__})"
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return [cpu, *gpus]
