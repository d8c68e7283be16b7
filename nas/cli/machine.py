"""`nas doctor`: what this machine can do."""

from __future__ import annotations

from collections.abc import Mapping

from nas.cli.options import Json, print_json


def doctor(as_json: Json = False) -> None:
    """Show this machine, its usable runtimes and the file formats that it can export.

    The last line says how much repeated timings vary.

    \b
    Example: nas doctor
    """
    import torch

    from nas.deploy.formats import all_formats
    from nas.deploy.formats.base import package_versions
    from nas.display.console import say
    from nas.latency import available_runtimes
    from nas.latency.timing import MAX_SPREAD, measure_noise
    from nas.machine import this_machine

    processor, features = this_machine.processor()
    facts = this_machine.recorded_facts()
    trains_on = [f"cpu, {torch.get_num_threads()} threads (torch {torch.__version__})"]
    trains_on += map(torch.cuda.get_device_name, range(torch.cuda.device_count()))
    runtimes, formats, noise = available_runtimes(), all_formats(), measure_noise()
    slowest = max(noise.samples_us) / noise.latency_us
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
                "noise": {
                    "spread": round(noise.spread, 4),
                    "worst": round(slowest, 3),
                    "unstable_above": MAX_SPREAD,
                },
            }
        )
        return
    say(f"processor      {processor}")
    say(f"vector units   {' '.join(features) or 'unknown'}")
    for key, value in facts.items():
        say(f"{key:<14} {value}")
    for name in trains_on:
        say(f"trains on      {name}")
    for runtime in runtimes:
        problem = "" if runtime.usable else runtime.reason
        say(f"runtime        {runtime.name}: {_state(problem, runtime.versions)}")
    for each in formats:
        problem = each.install_command if each.missing_packages else ""
        versions = package_versions(each.packages)
        suffix = "" if each.runs_here or problem else ", cannot be run on this operating system"
        say(f"format         {each.name}: {_state(problem, versions)}{suffix}")
    verdict = "stable" if noise.spread <= MAX_SPREAD else "too noisy for tables"
    say(
        f"timing noise   {noise.spread:.1%} between the quartiles, slowest sample {slowest:.2f} "
        f"times the median: {verdict}"
    )


def _state(problem: str, versions: Mapping[str, str] | None) -> str:
    """Return whether something can be used here, in words."""
    listed = ", ".join(f"{name} {version}" for name, version in (versions or {}).items())
    return f"not usable: {problem}" if problem else f"usable ({listed})"
