"""What this machine can do: its fingerprint, its runtimes, and how steady its clock ticks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nas.latency import available_runtimes, device, timing


def examine() -> dict[str, Any]:
    """Everything that `nas doctor` shows, as plain data."""
    processor, features = device.processor()
    return {
        "processor": processor,
        "features": list(features),
        "machine": device.recorded(),
        "training_devices": _training_devices(),
        "runtimes": [asdict(found) for found in available_runtimes()],
        "noise": noise(),
    }


def noise() -> dict[str, Any]:
    """How far apart repeated timings of one fixed piece of work lie on this machine.

    `spread` is the interquartile range over the median; a table's rows whose spread is above
    `unstable_above` are marked unstable.
    """
    found = timing.noise()
    return {
        "spread": round(found.spread, 4),
        "worst": round(max(found.samples_us) / found.latency_us, 3),
        "unstable_above": timing.LARGEST_SPREAD,
    }


def _training_devices() -> Sequence[str]:
    import torch

    found = [f"cpu, {torch.get_num_threads()} threads (torch {torch.__version__})"]
    found += [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found
