"""A GPU whose clock is arithmetic: it runs nothing, but takes its time over what a VM launches.

The host launches every `launch_s`, the first kernel `invocation_s` after the VM was entered, and
the GPU runs one kernel after the other. Executables are real ones, compiled for CUDA; which kernels
they launch is read from their code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from tvm import relax

_FUNCTION = re.compile(r"^@(\w+).*?(?=^@|\Z)", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"^\s*call\s+(plug|kernel\w*)\s", re.MULTILINE)

STEP_S = 3e-9
"""Of a plug."""


@dataclass
class SimulatedGpu:
    """See `nas.runtimes.tvm.device.Place`. Kernels take `kernel_s`, if not in `by_name`."""

    launch_s: float = 4e-6
    invocation_s: float = 9e-6
    kernel_s: float = 2e-6
    by_name: Mapping[str, float] = field(default_factory=dict)
    blocking: bool = False
    networks: list[dict[str, list[str]]] = field(default_factory=list)
    now: float = 0.0
    boards: int = 1
    kept_bytes: int = 1 << 20
    copies_inputs: bool = False

    @property
    def device(self) -> Any:
        return SimpleNamespace(type="cuda", sync=lambda: None)

    def virtual_machine(self, executable: relax.VMExecutable) -> SimulatedVm:
        text = executable.as_text()
        functions = {
            found[1]: _CALL.findall(found[0]) for found in _FUNCTION.finditer(text) if found
        }
        self.networks.append(functions)
        return SimulatedVm(self, functions)

    def tensor(self, array: np.ndarray) -> np.ndarray:
        return array

    @contextmanager
    def timing(self, threads: int) -> Iterator[None]:
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
        return lambda function: SimpleNamespace(results=[self._seconds(function)] * repeat)

    def _seconds(self, function: str) -> float:
        gpu, end = self._gpu, 0.0
        for i, name in enumerate(self._functions[function]):
            steps = int(self._inputs[function][0][0]) if name == "plug" else 0
            own = steps * STEP_S if name == "plug" else gpu.by_name.get(name, gpu.kernel_s)
            end = max(end, gpu.invocation_s + i * gpu.launch_s) + own
        return end
