"""The installed runtimes: found by their entry points, configured, and opened by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from nas import this_machine
from nas.arguments import checked
from nas.errors import DeviceError, RequestError
from nas.latency.runtime import Availability, Runtime

ENTRY_POINT_GROUP = "nas.runtimes"
"""Entry point group in which installed packages name their runtimes."""


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {each.name: each for each in entry_points(group=ENTRY_POINT_GROUP)}


def runtime_names() -> list[str]:
    """Return the names of all installed runtimes, whether they can be used here or not."""
    return sorted(_entry_points())


@cache
def runtime_class(name: str) -> type[Runtime]:
    """Return the class of an installed runtime.

    Raises:
        RequestError: no installed package has a runtime of this name, or its class does not load.
    """
    entry_point = _entry_points().get(name)
    if entry_point is None:
        raise RequestError(
            f"There is no runtime '{name}'.",
            remedy=f"Allowed: {', '.join(runtime_names())}. A package adds one by the entry point "
            f"group '{ENTRY_POINT_GROUP}'.",
        )
    try:
        loaded = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise RequestError(
            f"Runtime '{name}' does not load from '{entry_point.value}': {error}.",
            remedy="Install its package again.",
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Runtime)):
        raise RequestError(
            f"Runtime '{name}': '{entry_point.value}' is no subclass of "
            "nas.latency.runtime.Runtime.",
            remedy="Correct the entry point of its package.",
        )
    return loaded


def configured_runtime(
    name: str,
    *,
    target: str = "cpu",
    threads: int = 1,
    dtype: str = "float32",
    features: Sequence[str] | None = None,
) -> Runtime:
    """Return a runtime that is not opened: it lists kernels and predicts, but times nothing.

    Raises:
        RequestError: there is no such runtime, or it does not have the dtype.
    """
    cls = runtime_class(name).for_target(target)
    runtime = cls(target=target, threads=threads, dtype=dtype, features=features)
    runtime.check_dtype()
    return runtime


def default_runtime(name: str) -> Runtime:
    """Return a runtime that is not opened, for the first target and dtype that it has.

    Raises:
        RequestError: there is no such runtime.
    """
    cls = runtime_class(name)
    return configured_runtime(name, target=cls.targets[0], dtype=cls.dtypes[0])


@checked
def open_runtime(
    name: str, *, target: str = "cpu", threads: int = 1, dtype: str = "float32"
) -> Runtime:
    """Return a runtime that is ready to compile and time.

    Args:
        name: name of the runtime, see `runtime_names`.
        target: device to compile for.
        threads: number of threads that run one network.
        dtype: type of weights and activations.

    Raises:
        RequestError: there is no such runtime, it does not have the settings, or this process may
            not use as many cores.
        DeviceError: the runtime or the device cannot be used on this machine.
    """
    cls = runtime_class(name).for_target(target)
    runtime = cls(target=target, threads=threads, dtype=dtype)
    runtime.check_settings()
    if target == "cpu":  # Boards and GPUs have processors of their own.
        this_machine.require_cores(threads)
    availability = cls.availability()
    if not availability.usable:
        raise DeviceError(f"Runtime '{name}' cannot be used here: {availability.reason}.")
    runtime.open()
    return runtime


def available_runtimes() -> list[Availability]:
    """Return for every installed runtime whether it can be used on this machine."""
    return [runtime_class(name).availability() for name in runtime_names()]
