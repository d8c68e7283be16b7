"""One way to open and time a session of ONNX Runtime, for whole networks and for kernels alike."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from nas.latency import timing

_ERRORS_ONLY = 3


class Session:
    """A model, loaded, with its inputs and outputs in place.

    Threads are those of the session: this one, and `threads - 1` workers, which are kept on the
    same cores. Workers spin while a run lasts, as they do by default, but not after it: those of
    one session would take the cores from another.

    Args:
        model: what to run.
        inputs: shapes by name.
        threads: that share one node.
        optimise: as much as ONNX Runtime can; otherwise the model runs as it is written.
        write: where to write the model as it is after optimising.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Mapping[str, Sequence[int]],
        *,
        threads: int,
        optimise: bool,
        write: Path | None = None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
        )
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if not optimise:
            # Else each reader of a dequantised tensor would dequantise it for itself.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        if write is not None:
            options.optimized_model_filepath = str(write)
        with timing.pinned(threads):  # Workers stay where the thread that made them was.
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        self._binding = self._session.io_binding()
        rng = np.random.default_rng(0)
        types = {each.name: each.type.tensor_type.elem_type for each in model.graph.input}
        self._inputs = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(_random(types[name], shape, rng))
            for name, shape in inputs.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        names = [each.name for each in self._session.get_outputs()]
        for name in names:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        self._outputs = list(self._binding.get_outputs())
        for name, value in zip(names, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)

    def run(self, values: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The first output for these inputs."""
        for name, value in values.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(value))
        self._session.run_with_iobinding(self._binding)
        return np.array(self._outputs[0].numpy())

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Seconds of a run, inputs and outputs in place; see `timing.Evaluate`."""
        run, binding = self._session.run_with_iobinding, self._binding
        found = []
        for _ in range(samples):
            run(binding)
            start = time.perf_counter()
            for _ in range(calls):
                run(binding)
            found.append((time.perf_counter() - start) / calls)
        return found


def _random(element_type: int, shape: Sequence[int], rng: np.random.Generator) -> NDArray[Any]:
    """What an input is filled with: floats below one, or any bytes."""
    if element_type == onnx.TensorProto.UINT8:
        return rng.integers(0, 256, shape, np.uint8)
    return rng.random(shape, np.float32)
