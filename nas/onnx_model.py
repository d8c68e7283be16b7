"""The ONNX model of a `Graph`, written node by node from the folded graph: no torch, no tracing.

This is the only module that imports onnx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from nas import __version__, files
from nas.graph import Graph, Op, Shape

OPSET = 17
"""The oldest that has every op here as it is used: what old runtimes and converters still read."""

IR_VERSION = 8
"""The file format that came with `OPSET`; ONNX Runtime reads it since 1.12."""

INPUT = "image"
OUTPUT = "logits"
BATCH = "batch"


def model(
    graph: Graph, weights: Mapping[str, NDArray[np.float32]], *, name: str = "network"
) -> onnx.ModelProto:
    """The ONNX model of a graph, for any batch size.

    Its input is `image`, float32 `batch x channels x height x width`. Its output is `logits`,
    `batch x classes`; a graph that does not end in a vector gives
    `batch x channels x height x width`.

    Args:
        graph: what to write, folded or not; `graph.folded` is what is written.
        weights: of `graph.folded`, as `nas.torch_network.folded_weights` returns them. They become
            initialisers called `<slot>.weight` and `<slot>.bias`.
        name: of the ONNX graph.

    Raises:
        KeyError: the weights of a slot are missing.
        ValueError: an op of unknown kind or impossible shape, an average that runtimes disagree
            about, or weights that do not fit their op.
    """
    folded = graph.folded
    writer = _Writer(folded, weights)
    written = helper.make_graph(
        writer.nodes,
        name,
        [_declare(INPUT, folded.input_shape)],
        [_declare(OUTPUT, folded.output_shape, vector=_is_vector(folded.output_shape))],
        list(writer.initializers.values()),
    )
    return helper.make_model(
        written,
        producer_name="nas",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def random_weights(graph: Graph, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Return random weights for timing a network that is not trained.

    They keep activations near one (He et al. 2015, "Delving deep into rectifiers"), so that no
    number is denormal, which would be slow.

    Args:
        graph: the network; the weights are those of the folded graph.
        rng: generator of the random numbers.
    """
    weights: dict[str, NDArray[np.float32]] = {}
    for op in graph.folded.ops:
        if op.kind not in ("conv", "linear") or op.slot is None:
            continue
        inputs = graph.folded.input_channels(op) // op.groups
        shape = (op.shape[0], inputs, op.kernel, op.kernel)[: 4 if op.kind == "conv" else 2]
        scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
        weights[op.slot.name] = rng.standard_normal(shape, np.float32) * scale
        if op.bias:
            bias = rng.standard_normal(op.shape[0], np.float32) * np.float32(0.1)
            weights[f"{op.slot.name}.bias"] = bias
    return weights


def save(model: onnx.ModelProto, path: Path) -> None:
    """Replaces `path`, an `.onnx` file, so that no reader sees a half.

    Raises:
        ValueError: the file would not end in `.onnx`, by which runtimes know the format.
        OSError: it could not be written; the old file is kept.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"an ONNX model is saved as .onnx, not as {path.name!r}")
    files.replace(path, model.SerializeToString())


def _declare(name: str, shape: Shape, *, vector: bool = False) -> onnx.ValueInfoProto:
    sizes = [BATCH, *(shape[:1] if vector else shape)]
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)


def _is_vector(shape: Shape) -> bool:
    return shape[1:] == (1, 1)


class _Writer:
    """Writes the nodes and initialisers of a folded graph.

    A tensor is a map (`batch x channels x height x width`) or a vector (`batch x features`); each
    is turned into the other only where an op needs that, and only once.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._graph = graph
        self._weights = weights
        self._taken = {INPUT, OUTPUT}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._maps = {0: INPUT}
        self._vectors: dict[int, str] = {}
        for position, op in enumerate(graph.ops):
            if op.kind != "input":
                self._write(position, op)
        self._name_output()

    def _write(self, at: int, op: Op) -> None:
        match op.kind:
            case "conv":
                self._conv(at, op)
            case "linear":
                self._linear(at, op)
            case "relu":
                self._by_channel(at, op, "Relu")
            case "relu6":
                bounds = [self._constant(np.array(bound, np.float32)) for bound in (0, 6)]
                self._by_channel(at, op, "Clip", bounds)
            case "hard_swish":
                self._by_channel(at, op, "HardSwish")
            case "hard_sigmoid":
                self._by_channel(at, op, "HardSigmoid", alpha=1 / 6, beta=0.5)
            case "add":
                self._by_channel(at, op, "Add")
            case "multiply":
                self._by_channel(at, op, "Mul")
            case "concat":
                self._by_channel(at, op, "Concat", axis=1)
            case "slice":
                self._slice(at, op)
            case "shuffle":
                self._shuffle(at, op)
            case "max_pool":
                self._pool(at, op, "MaxPool")
            case "avg_pool":
                self._avg_pool(at, op)
            case "global_pool":
                x = self._map(op.inputs[0])
                self._maps[at] = self._node("GlobalAveragePool", [x], self._label(at))
            case _:
                raise ValueError(f"ONNX has no implementation of the op kind {op.kind!r}")

    # Ops

    def _conv(self, at: int, op: Op) -> None:
        inputs = self._graph.input_channels(op) // op.groups
        shape = (op.shape[0], inputs, op.kernel, op.kernel)
        arguments = [self._map(op.inputs[0]), *self._parameters(op, shape)]
        self._maps[at] = self._node(
            "Conv", arguments, self._label(at), group=op.groups, **_window(op)
        )

    def _linear(self, at: int, op: Op) -> None:
        shape = (op.shape[0], self._graph.input_channels(op))
        arguments = [self._vector(op.inputs[0]), *self._parameters(op, shape)]
        self._vectors[at] = self._node("Gemm", arguments, self._label(at), transB=1)

    def _by_channel(
        self, at: int, op: Op, kind: str, constants: Sequence[str] = (), **attributes: Any
    ) -> None:
        """An op that works on channels, whatever is behind them: on vectors if all inputs are."""
        inputs, found = self._alike(op)
        arguments = [*inputs, *constants]
        found[at] = self._node(kind, arguments, self._label(at), **attributes)

    def _slice(self, at: int, op: Op) -> None:
        """Slices that share out a tensor among them are one Split, which copies it only once."""
        if at in self._maps or at in self._vectors:
            return
        (x,), found = self._alike(op)
        parts = self._parts(op.inputs[0])
        if not parts:
            bounds = [self._integers(end) for end in (op.start, op.start + op.shape[0], 1)]
            found[at] = self._node("Slice", [x, *bounds], self._label(at))
            return
        sizes = self._integers(*[self._graph.ops[part].shape[0] for part in parts])
        names = [self._take(self._label(part)) for part in parts]
        name = self._take(f"split_{at}")
        self.nodes.append(helper.make_node("Split", [x, sizes], names, name=name, axis=1))
        found.update(zip(parts, names, strict=True))

    def _parts(self, source: int) -> list[int]:
        """The slices of a tensor, in order, if they have each of its channels exactly once."""
        ops = self._graph.ops
        slices = [at for at in self._graph.consumers[source] if ops[at].kind == "slice"]
        slices.sort(key=lambda at: ops[at].start)
        starts = [ops[at].start for at in slices] + [ops[source].shape[0]]
        ends = [0] + [ops[at].start + ops[at].shape[0] for at in slices]
        return slices if starts == ends else []

    def _shuffle(self, at: int, op: Op) -> None:
        c, h, w = op.shape
        label = self._label(at)
        parts = self._integers(0, op.groups, c // op.groups, h, w)  # 0 keeps the batch size.
        x = self._node("Reshape", [self._map(op.inputs[0]), parts], f"{label}.parts")
        x = self._node("Transpose", [x], f"{label}.interleaved", perm=[0, 2, 1, 3, 4])
        self._maps[at] = self._node("Reshape", [x, self._integers(0, c, h, w)], label)

    def _pool(self, at: int, op: Op, kind: str, **attributes: int) -> None:
        source = op.inputs[0]
        overhangs = op.overhangs(self._graph.ops[source].shape)
        arguments, attributes = [self._map(source)], {**attributes, "ceil_mode": int(overhangs)}
        self._maps[at] = self._node(kind, arguments, self._label(at), **attributes, **_window(op))

    def _avg_pool(self, at: int, op: Op) -> None:
        """Counts the padding and nothing beyond it, in old runtimes too.

        ONNX Runtime 1.20, told to count padding, also counts what hangs over (its issue 16203). So
        it is told only where there is padding, and padding that is hung over, which no block makes,
        is refused: whether it is right would depend on the runtime.
        """
        if op.padding and op.overhangs(self._graph.ops[op.inputs[0]].shape):
            raise ValueError("ONNX runtimes differ in averages that hang over their padding")
        self._pool(at, op, "AveragePool", count_include_pad=int(op.padding > 0))

    # Tensors

    def _map(self, at: int) -> str:
        if at not in self._maps:
            x = self._vectors[at]
            sizes = self._integers(0, *self._graph.ops[at].shape)
            self._maps[at] = self._node("Reshape", [x, sizes], f"{x}.map")
        return self._maps[at]

    def _vector(self, at: int) -> str:
        if at not in self._vectors:
            x = self._maps[at]
            self._vectors[at] = self._node("Flatten", [x], f"{x}.flat")
        return self._vectors[at]

    def _alike(self, op: Op) -> tuple[list[str], dict[int, str]]:
        """The inputs of an op, all maps or all vectors, and where its outputs belong then."""
        if all(source in self._vectors for source in op.inputs):
            return [self._vectors[source] for source in op.inputs], self._vectors
        return [self._map(source) for source in op.inputs], self._maps

    def _name_output(self) -> None:
        last = len(self._graph.ops) - 1
        result = self._vector(last) if _is_vector(self._graph.output_shape) else self._map(last)
        for node in self.nodes:
            node.output[:] = [OUTPUT if name == result else name for name in node.output]

    # Nodes, initialisers and their names

    def _node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Adds a node with one output; both have the name that is returned."""
        name = self._take(name)
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def _parameters(self, op: Op, shape: tuple[int, ...]) -> list[str]:
        """The initialisers with the weight, and the bias if there is one, of an op."""
        slot = op.slot_name
        found = [self._parameter(slot, f"{slot}.weight", shape)]
        if op.bias:
            found.append(self._parameter(f"{slot}.bias", f"{slot}.bias", shape[:1]))
        return found

    def _parameter(self, key: str, name: str, shape: tuple[int, ...]) -> str:
        array = self._weights[key]
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"{name} is {array.dtype} {array.shape}, not float32 {shape}")
        return self._initializer(name, array)

    def _integers(self, *values: int) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, array: NDArray[Any]) -> str:
        """The initialiser with a value that is no weight; equal ones are one."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            values = "_".join(map(str, array.flat))
            self._constants[key] = self._initializer(f"{array.dtype.name}_{values}", array)
        return self._constants[key]

    def _initializer(self, name: str, array: NDArray[Any]) -> str:
        name = self._take(name)
        self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def _label(self, at: int) -> str:
        """What an op is called: its slot, or its kind and position."""
        op = self._graph.ops[at]
        return op.slot.name if op.slot else f"{op.kind}_{at}"

    def _take(self, name: str) -> str:
        """`name`, or one like it: a slot may be called like anything else in the model."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _window(op: Op) -> dict[str, list[int]]:
    """How the kernel of a convolution or pool slides, as ONNX attributes."""
    return {
        "kernel_shape": [op.kernel] * 2,
        "strides": [op.stride] * 2,
        "pads": [op.padding] * 4,
    }
