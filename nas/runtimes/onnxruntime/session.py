"""Sessions of ONNX Runtime, in which whole networks and kernels are run and timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from nas.latency import timing

_LOG_ERRORS_ONLY = 3
"""Value of `log_severity_level`."""


class Session:
    """A loaded model with its inputs and outputs in place.

    A session runs on the calling thread and `threads - 1` workers, which stay on the same cores.
    Workers spin during a run, as they do by default, but not after it. Otherwise, the workers of
    one session would take the cores from another.

    Args:
        model: model to run.
        inputs: shapes of the inputs by name.
        threads: number of threads that run one node.
        optimise: whether ONNX Runtime optimises the model as far as it can.
        optimised_path: file to which the model is written after optimising; None writes nothing.

    Attributes:
        tensors: element type (`onnx.TensorProto.DataType`) and shape of each input and output, by
            name.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        inputs: Mapping[str, Sequence[int]],
        *,
        threads: int,
        optimise: bool,
        optimised_path: Path | None = None,
    ) -> None:
        self._session = open_session(
            model.SerializeToString(), threads, optimise=optimise, optimised_path=optimised_path
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
        values = {**self._inputs, **dict(zip(names, self._outputs, strict=True))}
        self.tensors: dict[str, tuple[int, tuple[int, ...]]] = {
            name: (value.element_type(), tuple(value.shape())) for name, value in values.items()
        }

    def run(self, values: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the first output for inputs by name."""
        for name, value in values.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(value))
        self._session.run_with_iobinding(self._binding)
        return np.array(self._outputs[0].numpy())

    def evaluate(self, calls: int, samples: int) -> Sequence[float]:
        """Time runs on inputs that are already in place. See `timing.Evaluate`."""
        run = partial(self._session.run_with_iobinding, self._binding)
        return timing.call_seconds(run, calls, samples)


def open_session(
    model: bytes | Path,
    threads: int,
    *,
    optimise: bool = True,
    optimised_path: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Return a session on the processor; see `Session` for the threads and the arguments.

    Args:
        model: a model, or the path of its file.
    """
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not optimise:
        # Otherwise, each reader of a dequantised tensor would get a dequantising node.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimised_path is not None:
        options.optimized_model_filepath = str(optimised_path)
    # Workers stay on the cores on which the thread that made them was.
    with timing.pinned(threads) if threads > 1 else nullcontext():
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _random(element_type: int, shape: Sequence[int], rng: np.random.Generator) -> NDArray[Any]:
    """Return random values of an input: floats in [0, 1), or bytes."""
    if element_type == onnx.TensorProto.UINT8:
        return rng.integers(0, 256, shape, np.uint8)
    return rng.random(shape, np.float32)
