"""The installed runtimes: found by their entry points, configured, and opened by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from nas.errors import DeviceError, RequestError, first_line
from nas.latency.runtime import Availability, Runtime
from nas.machine import this_machine
from nas.plugins import PlugInPoint, is_subclass_of

RUNTIMES = PlugInPoint(
    "nas.runtimes", "runtime", is_subclass_of(Runtime), "subclass of nas.latency.runtime.Runtime"
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def runtime_names() -> list[str]:
    """Return the names of all installed runtimes, whether they can be used here or not.

    A plug-in that does not load is left out, with a warning.
    """
    return list(RUNTIMES.load_all())


def runtime_class(name: str) -> type[Runtime]:
    """Return the class of an installed runtime.

    Raises:
        RequestError: no installed package has a runtime of this name, its class does not load or
            has another name, or the name does not fit into names of files.
    """
    cls: type[Runtime] = RUNTIMES.load(name)
    if cls.name != name or not _NAME.fullmatch(name):
        raise RequestError(
            f"The entry point '{name}' of {RUNTIMES.group} names the runtime '{cls.name}'.",
            remedy="Give both the same name, of letters, digits, '.', '_' and '-'.",
        )
    return cls


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
    has = runtime_class(name).capabilities
    return configured_runtime(name, target=has.targets[0], dtype=has.dtypes[0])


def completed_device(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the runtime, the target and the dtype of a device of which some are given.

    A target without a runtime belongs to the default runtime if that has targets of its kind, and
    otherwise to the one that accepts it. A runtime without the default target or dtype has its only
    one. What remains open is the default, which the runtime may refuse with what it has.

    Args:
        given: some of the settings `runtime`, `target` and `dtype`.
        defaults: all of them.

    Raises:
        RequestError: several runtimes have the target.
    """
    device = {name: given.get(name, defaults[name]) for name in ("runtime", "target", "dtype")}
    if "target" in given and "runtime" not in given and device["target"] != defaults["target"]:
        device["runtime"] = _runtime_with(device["target"], device["runtime"])
    if device["runtime"] not in RUNTIMES.names or device.items() <= defaults.items():
        return device
    cls = runtime_class(device["runtime"])
    if "target" not in given and len(cls.capabilities.targets) == 1:
        (device["target"],) = cls.capabilities.targets
    dtypes = cls.for_target(device["target"]).capabilities.dtypes
    if "dtype" not in given and len(dtypes) == 1:
        (device["dtype"],) = dtypes
    return device


def _runtime_with(target: str, default: str) -> str:
    """Return the name of the runtime with a target; the default one if none accepts it."""
    if default in RUNTIMES.names and _has_kind(runtime_class(default), target):
        return default
    accepting = []
    for name in runtime_names():
        with suppress(RequestError):
            runtime_class(name).for_target(target)(target=target).check_target()
            accepting.append(name)
    if len(accepting) > 1:
        raise RequestError(
            f"The runtimes {', '.join(accepting)} have target '{target}', and none is named.",
            remedy="Name one: runtime in [device] of a job file, or --runtime.",
        )
    return accepting[0] if accepting else default


def _has_kind(cls: type[Runtime], target: str) -> bool:
    """Return whether a runtime lists a target, or one that begins alike, such as `ssh://...`."""
    return any(
        target.startswith(each.removesuffix("...")) if each.endswith("...") else target == each
        for each in cls.capabilities.targets
    )


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
    if target.startswith("cpu"):  # Boards and GPUs have processors of their own.
        this_machine.require_cores(threads)
    availability = availability_of(cls)
    if not availability.usable:
        raise DeviceError(f"Runtime '{name}' cannot be used here: {availability.reason}.")
    runtime.open()
    return runtime


def available_runtimes() -> list[Availability]:
    """Return for every installed runtime whether it can be used on this machine."""
    result = []
    for name in RUNTIMES.names:
        try:
            result.append(availability_of(runtime_class(name)))
        except RequestError as error:
            result.append(Availability(name, False, str(error)))
    return result


def availability_of(cls: type[Runtime]) -> Availability:
    """Return whether a runtime can be used on this machine; an error is the reason why not."""
    try:
        return cls.availability()
    # A runtime of another package may import native code, which raises anything.
    except (Exception, SystemExit) as error:
        return Availability(cls.name, False, first_line(error))
