"""`nas doctor` and `nas device`: what this machine, or another device, can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nas.cli.options import Batch, Json, Threads, load_spaces, print_json, with_sizes
from nas.display.console import say

if TYPE_CHECKING:
    from nas.latency.core_speed import SpeedSummary
    from nas.latency.runtime import Availability, Runtime
    from nas.space import SearchSpace

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


@with_sizes
def device(
    address: Annotated[
        str,
        typer.Argument(help="The device: ssh://USER@HOST[?python=PATH], adb: or adb:SERIAL."),
    ],
    space: Annotated[
        list[str] | None,
        typer.Option(help="Also say how long a table of this space takes; may be repeated."),
    ] = None,
    threads: Threads = 1,
    batch: Batch = 1,
    as_json: Json = False,
    **sizes: int,
) -> None:
    """Show what another device has, and which runtimes can be used there.

    Nothing is installed on the device, and nothing is left there.

    \b
    Example: nas device ssh://pi@10.0.0.7
    Example: nas device adb: --space mobilenet --image-size 32
    """
    from nas.latency.installed_runtimes import runtime_class, runtime_names
    from nas.transports import split_address, transport_to
    from nas.transports.facts import DeviceFacts

    spaces = load_spaces(space or [], sizes)
    classes = [runtime_class(name).for_target(address) for name in runtime_names()]
    split_address(address, sorted({setting for cls in classes for setting in cls.settings}))
    with transport_to(address.partition("?")[0]) as transport:
        facts = DeviceFacts.of(transport)
    rows: list[tuple[Availability, dict[str, str]]] = []
    for cls in classes:
        runtime = cls(target=cls.own_target(address), threads=threads)
        if (state := _state_there(runtime)) is not None:
            rows.append((state, _tables_there(runtime, state, spaces, batch)))
            runtime.release()
    if as_json:
        runtimes = [{**vars(state), "tables": tables} for state, tables in rows]
        print_json({"address": address, **vars(facts), "runtimes": runtimes})
        return
    say(f"processor      {facts.processor}")
    say(f"vector units   {' '.join(facts.features) or 'unknown'}")
    say(f"code           triple={facts.triple} cpu={facts.cpu}")
    for key, value in facts.recorded.items():
        if value is not None:
            say(f"{key:<14} {value}")
    for state, tables in rows:
        say(f"runtime        {state.name}: {_state(state.reason, state.versions)}")
        for name, text in tables.items():
            say(f"{'':<14} a table of {name}: {text}")
    for doubt in facts.doubts:
        say(f"doubt          {doubt}")


def _state_there(runtime: Runtime) -> Availability | None:
    """Return whether a runtime can be used on the device of its target, by trying.

    None if it has no such devices.
    """
    from nas.errors import NasError, RequestError
    from nas.latency.runtime import Availability

    try:
        runtime.check_target()
    except RequestError:
        return None
    try:
        runtime.open()
        return Availability(runtime.name, True, versions=runtime.fingerprint.versions)
    except NasError as error:
        return Availability(runtime.name, False, str(error))


def _tables_there(
    runtime: Runtime, state: Availability, spaces: Sequence[SearchSpace], batch: int
) -> dict[str, str]:
    """Return how long the tables of some spaces take on a device, in words, by the space."""
    from nas.display.formatting import format_duration
    from nas.errors import NasError
    from nas.latency.build import space_kernels
    from nas.latency.build_estimate import estimate_build_with

    tables: dict[str, str] = {}
    for space in spaces if state.usable else ():
        kernels = space_kernels(space, runtime, batch)
        text = f"{len(kernels)} kernels"
        try:
            seconds = estimate_build_with(kernels, runtime).estimated_seconds
        except NasError as error:
            text += f", which cannot be timed: {error.message}"
        else:
            text += "" if seconds is None else f", about {format_duration(seconds)}"
        tables[f"{space.name} {space.image_size}px"] = text
    return tables


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
