"""The kits in a run folder, for a device that only its user reaches, see `nas.latency.kit`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from nas.latency.kit import RESULTS

if TYPE_CHECKING:
    from nas.run.record import KitName
    from nas.run.run import Run

_PURPOSES = {
    "table": "its kernels are not timed yet",
    "networks": "all latencies of whole networks are predictions until it has timed them",
}


def kit_folder(run: Run, kit: KitName) -> Path:
    """Return the folder of a kit of a run."""
    return run.path / "kits" / kit


def networks_command(run: Run) -> str:
    """Return the command that writes the kit of a run's networks, or takes in its results."""
    return shlex.join(["nas", "kit", "networks", str(run.path)])


def waiting_text(run: Run) -> str:
    """Return what a run waits for and what its user does, in sentences; empty if it does not."""
    kit = run.record.waiting
    if kit is None:
        return ""
    folder = kit_folder(run, kit)
    command = run.continue_command if kit == "table" else networks_command(run)
    return (
        f"Waiting for the device: {_PURPOSES[kit]}. Copy the folder {folder} to the device and run "
        f"./kit there, as its README.txt says. Then copy {RESULTS} back into the folder, and run: "
        f"{command}"
    )
