"""The route from TVM to Vela: a code generator for the quantised parts of a Relax module.

`FuseOpsByPattern` marks the quantised convolutions and additions of a Relax module, and neighbours
become one function. TVM hands these functions to the function `relax.ext.ethos_u` of this module,
which writes each as an int8 TensorFlow Lite file and compiles it with Vela. The
library that TVM then builds has the compiled files in it, as data for the driver of the NPU.

A Relax module is quantised if its tensors pass through `quantize` and `dequantize`, and its layout
is `NCHW`. Only convolutions, additions, ReLU and ReLU6 are taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import relax
from tvm.relax.dpl import is_const, is_op, wildcard

from nas.errors import MeasurementError
from nas.graph import Channels, Graph, Op, Slot
from nas.quantised_network import Affine, QuantisedNetwork, fused_activation
from nas.runtimes.ethos_u.configuration import Configuration, Target, configuration
from nas.runtimes.ethos_u.networks import quantised_file
from nas.runtimes.ethos_u.vela import Compilation, compile_file

COMPILER = "ethos_u"
"""Name of the code generator: TVM looks for the function `relax.ext.<name>`."""


def _patterns() -> list[tuple[str, Any]]:
    """Return the patterns of what the NPU takes, the largest first."""

    def real(values: Any) -> Any:
        return is_op("relax.dequantize")(values, is_const(), is_const())

    def rounded(values: Any) -> Any:
        return is_op("relax.quantize")(values, is_const(), is_const())

    convolution = is_op("relax.nn.conv2d")(real(wildcard()), real(is_const()))
    sums = {
        "conv2d": is_op("relax.add")(convolution, real(is_const())),
        "add": is_op("relax.add")(real(wildcard()), real(wildcard())),
    }
    clips = {
        "relu6": lambda values: is_op("relax.clip")(values, wildcard(), wildcard()),
        "relu": is_op("relax.nn.relu"),
    }
    patterns = []
    for name, values in sums.items():
        for clip, operation in clips.items():
            patterns.append((f"{COMPILER}.{name}_{clip}", rounded(operation(values))))
        patterns.append((f"{COMPILER}.{name}", rounded(values)))
    return patterns


def partition(module: tvm.IRModule) -> tvm.IRModule:
    """Return a module in which what the NPU takes is marked for `relax.ext.ethos_u`."""
    passes = [
        relax.transform.ConvertToDataflow(),
        relax.transform.FuseOpsByPattern(_patterns(), bind_constants=True),
        relax.transform.MergeCompositeFunctions(),
    ]
    return tvm.transform.Sequential(passes)(module)


@dataclass
class Generator:
    """Compiles the marked functions of a module for one system; use it as `relax.ext.ethos_u`.

    Args:
        target: the system.

    Attributes:
        compilations: what Vela made of each function, by its name.
    """

    target: Target
    compilations: dict[str, Compilation] = field(default_factory=dict)

    def run(self, module: tvm.IRModule) -> tvm.IRModule:
        """Return a partitioned module with its marked functions compiled.

        Raises:
            MeasurementError: Vela refuses a function.
        """
        tvm_ffi.register_global_func(f"relax.ext.{COMPILER}", self._generate, override=True)
        return relax.transform.RunCodegen()(module)

    def _generate(self, functions: Any, options: Any, constant_names: Any) -> list[Any]:
        """Return a C module for each function, with the compiled file as its data."""
        modules = []
        system: Configuration = configuration(self.target)
        for function in functions:
            name = str(function.attrs["global_symbol"])
            compilation = compile_file(quantised_file(network_of(function)), system)
            self.compilations[name] = compilation
            create = tvm.get_global_func("runtime.CSourceModuleCreate")
            modules.append(create(_source(name, compilation.model), "c", [name], []))
        return modules


def _source(name: str, model: bytes) -> str:
    """Return C source that holds a compiled file and hands it to the NPU's driver."""
    data = ",".join(map(str, model))
    return f"""#include <stdint.h>
#ifdef __cplusplus
extern "C" {{
#endif
__attribute__((aligned(16))) const uint8_t {name}_model[] = {{{data}}};
const uint32_t {name}_model_bytes = {len(model)};
/* The application links a function that runs a compiled file; without one, calls fail. */
__attribute__((weak)) int32_t ethos_u_run(const uint8_t* model, uint32_t bytes, const void* args,
                                          int32_t count) {{ return -1; }}
int32_t {name}(void* self, const void* args, int32_t count, void* result) {{
  return ethos_u_run({name}_model, {name}_model_bytes, args, count);
}}
#ifdef __cplusplus
}}
#endif
"""


def network_of(function: relax.Function) -> QuantisedNetwork:
    """Return the quantised network that a marked function computes.

    Raises:
        MeasurementError: the function reads or returns more than one tensor.
    """
    if len(function.params) != 1:
        raise MeasurementError(f"A part of the network reads {len(function.params)} tensors.")
    reader = _Reader(function)
    graph = Graph(tuple(reader.ops))
    return QuantisedNetwork(
        graph,
        reader.affines,
        reader.weights,
        reader.scales,
        reader.biases,
        np.empty(0, np.float32),
    )


class _Reader:
    """Reads the composite functions of a marked function into the ops of a graph."""

    def __init__(self, function: relax.Function) -> None:
        (image,) = function.params
        self.ops = [Op("input", (), _shape(image))]
        self.affines: dict[int, Affine] = {}
        self.weights: dict[str, NDArray[np.int8]] = {}
        self.scales: dict[str, NDArray[np.float32]] = {}
        self.biases: dict[str, NDArray[np.int32]] = {}
        self._positions: dict[Any, int] = {image: 0}
        composites: dict[Any, relax.Function] = {}
        for binding in _bindings(function):
            if isinstance(binding.value, relax.Function):
                composites[binding.var] = binding.value
            elif isinstance(binding.value, relax.Call) and binding.value.op in composites:
                composite = composites[binding.value.op]
                sources = [self._positions[argument] for argument in binding.value.args]
                self._positions[binding.var] = self._read(composite, sources)
            elif isinstance(binding.value, relax.Var):
                self._positions[binding.var] = self._positions[binding.value]

    def _read(self, composite: relax.Function, sources: Sequence[int]) -> int:
        """Add the ops of a composite function; return the position of its result."""
        inputs = dict(zip(composite.params, sources, strict=True))
        real: dict[Any, _Real] = {}
        at = 0
        for binding in _bindings(composite):
            call = binding.value
            match call.op.name:
                case "relax.dequantize":
                    values, scale, zero_point = call.args
                    source = inputs.get(values)
                    if source is not None:
                        self.affines[source] = _affine(scale, zero_point)
                        real[binding.var] = _Real(source=source)
                    else:
                        real[binding.var] = _Real(_numpy(values), _numpy(scale))
                case "relax.nn.conv2d":
                    at = self._add_convolution(call, real, _shape(binding.var))
                    real[binding.var] = _Real(source=at)
                case "relax.add":
                    first, second = (real[argument] for argument in call.args)
                    if second.source is None:
                        self.biases[self.ops[at].slot_name] = second.values.reshape(-1)
                    else:
                        both = first.source, second.source
                        at = self._add(Op("add", both, _shape(binding.var)))  # type: ignore[arg-type]
                    real[binding.var] = _Real(source=at)
                case "relax.nn.relu" | "relax.clip":
                    kind = "relu" if call.op.name == "relax.nn.relu" else "relu6"
                    at = self._add(Op(kind, (at,), _shape(binding.var)))
                    real[binding.var] = _Real(source=at)
                case "relax.quantize":
                    self.affines[at] = _affine(*call.args[1:])
        return at

    def _add_convolution(self, call: relax.Call, real: Mapping[Any, _Real], shape: Any) -> int:
        data, weight = (real[argument] for argument in call.args)
        assert data.source is not None
        slot = f"conv{len(self.ops)}"
        self.weights[slot], self.scales[slot] = weight.values, weight.scales.reshape(-1)
        attributes = call.attrs
        return self._add(
            Op(
                "conv",
                (data.source,),
                shape,
                kernel=weight.values.shape[2],
                stride=int(attributes.strides[0]),
                padding=int(attributes.padding[0]),
                groups=int(attributes.groups),
                bias=True,
                slot=Slot(slot, Channels.prefix(shape[0], shape[0])),
            )
        )

    def _add(self, op: Op) -> int:
        self.ops.append(op)
        return len(self.ops) - 1


@dataclass
class _Real:
    """A float32 tensor inside of a composite function: that of an op, or constants."""

    values: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    scales: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    source: int | None = None


def _bindings(function: relax.Function) -> list[Any]:
    return [binding for block in function.body.blocks for binding in block.bindings]


def _shape(variable: relax.Var) -> Any:
    return tuple(int(size) for size in variable.ty.shape)[1:]


def _numpy(constant: relax.Constant) -> NDArray[Any]:
    array: NDArray[Any] = constant.value.numpy()
    return array


def _affine(scale: relax.Constant, zero_point: relax.Constant) -> Affine:
    return Affine(float(_numpy(scale)), int(_numpy(zero_point)))


def relax_module(network: QuantisedNetwork) -> tvm.IRModule:
    """Return the quantised Relax module of a network of convolutions, ReLUs and additions.

    Its function `main` maps an int8 image `1 x C x H x W` to the int8 output.
    """
    builder = relax.BlockBuilder()
    graph, affines = network.graph, network.activations
    image = relax.Var("image", relax.TensorType((1, *graph.input_shape), "int8"))

    def real(tensor: Any, at: int) -> Any:
        return relax.op.dequantize(tensor, *_constants(affines[at]))

    with builder.function("main", [image]):
        with builder.dataflow():
            tensors: dict[int, Any] = {0: image}
            at = 1
            while at < len(graph.ops):
                op = graph.ops[at]
                if op.kind == "conv":
                    values = _convolution(network, op, real(tensors[op.inputs[0]], op.inputs[0]))
                else:
                    values = relax.op.add(*(real(tensors[source], source) for source in op.inputs))
                fused = fused_activation(graph, at)
                if fused is not None:
                    is_relu = graph.ops[fused].kind == "relu"
                    values = relax.op.nn.relu(values) if is_relu else relax.op.clip(values, 0, 6)
                    at = fused
                tensors[at] = builder.emit(relax.op.quantize(values, *_constants(affines[at])))
                at += 1
            output = builder.emit_output(tensors[at - 1])
        builder.emit_func_output(output)
    module: tvm.IRModule = relax.transform.Normalize()(builder.get())
    return module


def _convolution(network: QuantisedNetwork, op: Op, values: Any) -> Any:
    slot = op.slot_name
    zero = relax.const(np.zeros(op.shape[0], np.int8))
    weight = relax.op.dequantize(
        relax.const(network.weights[slot]), relax.const(network.weight_scales[slot]), zero, axis=0
    )
    result = relax.op.nn.conv2d(
        values, weight, strides=op.stride, padding=op.padding, groups=op.groups
    )
    bias = network.biases[slot].reshape(1, -1, 1, 1)
    scales = relax.const(network.bias_scales(op))
    return relax.op.add(result, relax.op.dequantize(relax.const(bias), scales, zero, axis=1))


def _constants(affine: Affine) -> tuple[relax.Constant, relax.Constant]:
    zero_point = relax.const(np.array(affine.zero_point, np.int8))
    return relax.const(np.array(affine.scale, np.float32)), zero_point
