"""A simulated GPU, which works out when the kernels of a network would end and runs none.

The host launches a kernel every `launch_s`, the first one `invocation_s` after it entered the
virtual machine, and the GPU runs one kernel after the other. Executables are really compiled for
CUDA, and the kernels that they launch are read from their code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from tvm import relax

_FUNCTION = re.compile(r"^@(\w+).*?(?=^@|\Z)", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"^\s*call\s+(blocking_kernel|kernel\w*)\s", re.MULTILINE)

STEP_S = 3e-9
"""Seconds of a step of a blocking kernel."""


@dataclass
class SimulatedGpu:
    """A simulated `nas.runtimes.tvm.device.Device`.

    Args:
        launch_s: seconds of a launch.
        invocation_s: seconds after which the first kernel can start.
        kernel_s: seconds of each kernel that is not in `by_name`.
        by_name: seconds of kernels by the names of their functions.
        blocking: whether launches wait for the GPU.
        stolen_s: seconds that another process takes from the first of three runs of `main` or more.
        networks: launched kernels by function, of each network that was loaded.
        now: seconds on the clock of the host.
    """

    launch_s: float = 4e-6
    invocation_s: float = 9e-6
    kernel_s: float = 2e-6
    by_name: Mapping[str, float] = field(default_factory=dict)
    blocking: bool = False
    stolen_s: float = 0.0
    networks: list[dict[str, list[str]]] = field(default_factory=list)
    now: float = 0.0
    device_count: int = 1
    cache_bytes: int = 1 << 20
    library_bytes: int = 1 << 10

    @property
    def tvm_device(self) -> Any:
        return SimpleNamespace(type="cuda", sync=lambda: None)

    def detecting_loss(self) -> AbstractContextManager[None]:
        return nullcontext()

    def load_network(self, executable: relax.VMExecutable) -> SimulatedVm:
        text = executable.as_text()
        functions = {match[1]: _CALL.findall(match[0]) for match in _FUNCTION.finditer(text)}
        self.networks.append(functions)
        return SimulatedVm(self, functions)

    def to_device(self, array: np.ndarray) -> np.ndarray:
        return array

    @contextmanager
    def timing_context(self, threads: int) -> Iterator[None]:
        yield

    def release(self) -> None:
        pass

    def processor(self) -> tuple[str, tuple[str, ...]]:
        return "Simulated GPU", ("cuda", "sm_80")

    def recorded(self) -> Mapping[str, Any]:
        return {}


class SimulatedVm:
    def __init__(self, gpu: SimulatedGpu, functions: Mapping[str, Sequence[str]]) -> None:
        self._gpu, self._functions = gpu, functions
        self._inputs: dict[str, tuple[np.ndarray, ...]] = {}

    def set_input(self, function: str, *inputs: np.ndarray) -> None:
        self._inputs[function] = inputs

    def invoke_stateful(self, function: str) -> None:
        launching = self._gpu.invocation_s + len(self._functions[function]) * self._gpu.launch_s
        self._gpu.now += self._seconds(function) if self._gpu.blocking else launching

    def time_evaluator(self, name: str, device: Any, *, number: int, repeat: int) -> Any:
        assert (name, number) == ("invoke_stateful", 1), "each inference is awaited"

        def run(function: str) -> SimpleNamespace:
            results = [self._seconds(function)] * repeat
            if function == "main" and repeat > 2:
                results[0] += self._gpu.stolen_s
            return SimpleNamespace(results=results)

        return run

    def _seconds(self, function: str) -> float:
        gpu, end = self._gpu, 0.0
        for i, name in enumerate(self._functions[function]):
            steps = int(self._inputs[function][0][0]) if name == "blocking_kernel" else 0
            own = (
                steps * STEP_S if name == "blocking_kernel" else gpu.by_name.get(name, gpu.kernel_s)
            )
            end = max(end, gpu.invocation_s + i * gpu.launch_s) + own
        return end
