"""What a runtime can do, as data, and its settings, which are checked against that.

Nothing here touches a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from nas.errors import RequestError
from nas.figures import Figure
from nas.latency.core_speed import READING
from nas.latency.rounds import ROUNDS


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a runtime can do, on all devices that it has.

    Attributes:
        targets: targets that it compiles for, for messages and help texts. One that ends with `...`
            stands for all that begin alike.
        dtypes: types of weights and activations that it has.
        max_threads: largest number of threads that run one network; None means as many as the
            device has cores.
        max_batch: largest batch that it has kernels for; None means that there is no limit.
        dispatch_parts: names of the costs beside the kernels that its timer measures and
            `Runtime.network_us` needs, see `nas.latency.cache_model.DispatchCosts`.
        rounds: number of rounds in which a build times each kernel, at least. A runtime whose
            latencies are always the same, such as those of a model, says 1; whole networks are then
            timed once, too, unless their `network_basis` is another.
        kernel_figures: figures that are sums over the kernels of a network, such as `energy_uj`.
            `KernelTimer.time_kernel` returns the value of a kernel with its schedule, under the
            name of the figure, so that the table has it.
        reading: what a reading of the core's speed is, see `nas.latency.core_speed`.
        has_local_kernels: whether the kernels of a block never depend on other blocks. If so, the
            kernels of each block are remembered and predictions are fast.
    """

    targets: tuple[str, ...]
    dtypes: tuple[str, ...] = ("float32",)
    max_threads: int | None = 1
    max_batch: int | None = None
    dispatch_parts: tuple[str, ...] = ()
    rounds: int = ROUNDS
    kernel_figures: tuple[Figure, ...] = ()
    reading: str = READING
    has_local_kernels: bool = True


class Configured:
    """A runtime with its settings. It can be pickled: the settings travel.

    Args:
        target: device to compile for: one of the targets, or what `check_target` accepts besides;
            by default the first one.
        threads: number of threads that run one network.
        dtype: type of weights and activations; by default the first one.
        features: features of the processor, for runtimes whose kernels depend on them; None means
            this machine's processor.

    Attributes:
        name: name of the runtime, which is also the name of its entry point.
        capabilities: what it can do.
        settings: names of the settings that a target with an address (`nas.transports`) may have.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    settings: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        target: str | None = None,
        threads: int = 1,
        dtype: str | None = None,
        features: Sequence[str] | None = None,
    ) -> None:
        self.target = target or self.capabilities.targets[0]
        self.threads = threads
        self.dtype = dtype or self.capabilities.dtypes[0]
        self.features = features

    def __reduce__(self) -> Any:
        settings = (self.target, self.threads, self.dtype, self.features)
        return _restore, (type(self), *settings)

    @classmethod
    def own_target(cls, device: str) -> str:
        """Return the address in a target, with those of its settings that this runtime has."""
        address, _, query = device.partition("?")
        own = [each for each in query.split("&") if each.partition("=")[0] in cls.settings]
        return "?".join(filter(None, (address, "&".join(own))))

    def check_settings(self) -> None:
        """Raise RequestError for a target, a dtype or a number of threads that it does not have."""
        self.check_target()
        self.check_dtype()
        self._check_number("threads", self.threads, self.capabilities.max_threads)

    def check_target(self) -> None:
        """Raise RequestError for a target that it does not have."""
        if self.target not in self.capabilities.targets:
            raise self.refusal("target", self.target, self.capabilities.targets)

    def check_dtype(self) -> None:
        """Raise RequestError for a dtype that it does not have on any target."""
        if self.dtype not in self.capabilities.dtypes:
            raise self.refusal("dtype", self.dtype, self.capabilities.dtypes)

    def check_batch(self, batch: int) -> None:
        """Raise RequestError for a batch size that it has no kernels for."""
        self._check_number("The batch size", batch, self.capabilities.max_batch)

    def _check_number(self, what: str, number: int, most: int | None) -> None:
        if number < 1:
            raise RequestError(f"{what} is {number}.", remedy="Use 1 or more.")
        if most is not None and number > most:
            raise RequestError(
                f"{what} is {number}, but runtime '{self.name}' has at most {most} on target "
                f"'{self.target}'.",
                remedy="Use less, or another runtime or target.",
            )

    def refusal(self, setting: str, value: str, allowed: Sequence[str]) -> RequestError:
        """Return the error for a setting that the runtime does not have."""
        remedy = f"Allowed: {', '.join(allowed)}." if allowed else "Leave it out."
        return RequestError(f"Runtime '{self.name}' has no {setting} '{value}'.", remedy=remedy)


def _restore(
    cls: type[Configured], target: str, threads: int, dtype: str, features: Sequence[str] | None
) -> Configured:
    """Create a runtime that was pickled."""
    return cls(target=target, threads=threads, dtype=dtype, features=features)
