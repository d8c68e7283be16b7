"""Models that ONNX Runtime has loaded, in which whole networks and kernels run.

It is a module of `nas.runtimes.files`, and needs nothing of this package.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

_LOG_ERRORS_ONLY = 3
"""Value of `log_severity_level`."""

_TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(int8)": np.int8}


class Session:
    """A loaded model with its inputs and outputs in place.

    A session runs on the calling thread and `threads - 1` workers, which stay on the cores on which
    the thread that made them was. Workers spin during a run, as they do by default, but not after
    it. Otherwise, the workers of one session would take the cores from another.

    Args:
        model: the model.
        inputs: shapes of the inputs by name.
        threads: number of threads that run one node.
        optimise: whether ONNX Runtime optimises the model as far as it can.

    Attributes:
        outputs: the first output and all others after a run, by name.
    """

    def __init__(self, model: bytes, inputs: Any, threads: int = 1, optimise: bool = True) -> None:
        self._session = open_session(model, threads, optimise=optimise)
        self._binding = self._session.io_binding()
        rng = np.random.default_rng(0)
        types = {each.name: _TYPES[each.type] for each in self._session.get_inputs()}
        self._inputs = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(_random(types[name], shape, rng))
            for name, shape in inputs.items()
        }
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        names = [each.name for each in self._session.get_outputs()]
        for name in names:
            self._binding.bind_output(name, "cpu")
        self.call()
        self.outputs = dict(zip(names, self._binding.get_outputs(), strict=True))
        for name, value in self.outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def call(self) -> None:
        """Run the model on the inputs that are in place."""
        self._session.run_with_iobinding(self._binding)

    def run(self, values: Any) -> Any:
        """Return the first output, an array, for arrays of inputs by name."""
        for name, value in values.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(value))
        self.call()
        return np.array(next(iter(self.outputs.values())).numpy())


def open_session(
    model: Any, threads: int, *, optimise: bool = True, optimised_path: Any = None
) -> onnxruntime.InferenceSession:
    """Return a session on the processor; see `Session` for the threads and the arguments.

    Args:
        model: a model, or the path of its file.
        optimised_path: file to which the model is written after optimising; None writes nothing.
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
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def optimised(model: bytes) -> bytes:
    """Return a model as ONNX Runtime optimises it here."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "optimised.onnx")
        open_session(model, 1, optimised_path=path)
        with open(path, "rb") as file:
            return file.read()


def tensors(model: bytes, inputs: Any) -> dict[str, Any]:
    """Return type and shape of the inputs and outputs of a model that runs as it is, by name.

    ONNX Runtime infers most of them. The others follow from a run.
    """
    session = open_session(model, 1, optimise=False)
    inferred = {e.name: (e.type, e.shape) for e in (*session.get_inputs(), *session.get_outputs())}
    if all(isinstance(size, int) for _, shape in inferred.values() for size in shape):
        return inferred
    outputs = Session(model, inputs, optimise=False).outputs
    computed = {name: (value.data_type(), value.shape()) for name, value in outputs.items()}
    return {**inferred, **computed}


FUNCTIONS = {each.__name__: each for each in (optimised, tensors)}


def _random(dtype: Any, shape: Any, rng: Any) -> Any:
    """Return random values of an input: floats in [0, 1), or bytes."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max + 1, shape, dtype)
    return rng.random(shape, np.float32)


open_file = Session
