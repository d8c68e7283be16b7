"""`nas doctor`: what this machine can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nas.cli.options import Json, print_json
from nas.display.console import say

if TYPE_CHECKING:
    from nas.latency.core_speed import SpeedSummary

SPEED_SECONDS = 5.0
"""How long the speed of a core is watched."""

IDLE_SHARE = 0.95
"""Share of the time at full speed from which on nothing slows a core: what is left are interrupts
of the operating system."""


def doctor(as_json: Json = False) -> None:
    """Show this machine, its usable runtimes and the file formats that it can export.

    The last line says whether other work slows this machine, from five seconds of readings.

    \b
    Example: nas doctor
    """
    from nas.deploy.formats import all_formats
    from nas.deploy.formats.base import package_versions
    from nas.latency import available_runtimes
    from nas.latency.runtime import load_problem
    from nas.latency.timing import watch_speed
    from nas.machine import this_machine

    processor, features = this_machine.processor()
    facts = this_machine.recorded_facts()
    torch_problem = load_problem("torch", "torch")
    trains_on = [] if torch_problem else _training_devices()
    runtimes, formats = available_runtimes(), all_formats()
    speed = watch_speed(SPEED_SECONDS)
    if as_json:
        print_json(
            {
                "processor": processor,
                "features": features,
                "machine": facts,
                "training_devices": trains_on,
                "runtimes": runtimes,
                "formats": [
                    {
                        "name": each.name,
                        "precision": each.precision,
                        "usable": not each.missing_packages,
                        "runs_here": each.runs_here,
                        "versions": package_versions(each.packages),
                        "install": each.install_command if each.missing_packages else "",
                    }
                    for each in formats
                ],
                "speed": speed._asdict(),
            }
        )
        return
    say(f"processor      {processor}")
    say(f"vector units   {' '.join(features) or 'unknown'}")
    for key, value in facts.items():
        say(f"{key:<14} {value}")
    for name in trains_on or [f"nothing: {torch_problem}"]:
        say(f"trains on      {name}")
    for runtime in runtimes:
        problem = "" if runtime.usable else runtime.reason
        say(f"runtime        {runtime.name}: {_state(problem, runtime.versions)}")
    for each in formats:
        problem = each.install_command if each.missing_packages else ""
        versions = package_versions(each.packages)
        suffix = "" if each.runs_here or problem else ", its files are not run here"
        say(f"format         {each.name}: {_state(problem, versions)}{suffix}")
    say(f"speed          {_speed(speed)}")


def _speed(speed: SpeedSummary) -> str:
    """Return in words at which speeds the core ran."""
    share = f"{speed.full_share:.0%} of {SPEED_SECONDS:g} s at full speed"
    if speed.slow_factor is None or speed.stretch_s is None or speed.full_share >= IDLE_SHARE:
        return f"{share}: nothing slows this core now"
    return (
        f"{share}; otherwise computing takes {speed.slow_factor:.2f} times as long, in stretches "
        f"of {1000 * speed.stretch_s:.3g} ms. Other work on this machine or its host slows the "
        "core, and timings wait for full speed"
    )


def _training_devices() -> list[str]:
    """Return the devices that torch trains on, in words."""
    import torch

    gpus = map(torch.cuda.get_device_name, range(torch.cuda.device_count()))
    return [f"cpu, {torch.get_num_threads()} threads (torch {torch.__version__})", *gpus]


def _state(problem: str, versions: Mapping[str, str] | None) -> str:
    """Return whether something can be used here, in words."""
    listed = ", ".join(f"{name} {version}" for name, version in (versions or {}).items())
    return f"not usable: {problem}" if problem else f"usable ({listed})"
