"""Networks written as TensorFlow Lite files, against torch."""

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from nas import tflite_model
from nas.deploy.model import TrainedModel
from nas.errors import ExportError
from nas.graph import OP_KINDS, Graph, Op
from nas.quantisation.post_training import quantise
from nas.quantisation.simulation import simulate
from nas.space import load_space
from nas.space.builder import Builder
from nas.space.library import find_reference
from nas.torch_network import folded_weights, run_graph, to_torch
from tests.quantisation.test_post_training import quantised
from tests.spaces import WITH_EVERY_BLOCK
from tests.test_onnx_model import EXAMPLES, images, network

UNSUPPORTED = {"avg_pool_overhanging_below"}
"""Examples that TensorFlow Lite has no counterpart of."""

SUPPORTED = {name: graph for name, graph in EXAMPLES.items() if name not in UNSUPPORTED}


def padded_pool(kind, non_negative):
    """Return a pooling with padding on a map of even size, which is not "same" padding."""
    build = Builder((5, 8, 8), norm=False, activation="relu", classes=7)
    x = build.conv_unit(build.input, "a", 6, activate=non_negative)
    getattr(build, kind)(x, "pool", kernel=3, stride=2)
    return build.graph()


def calm_network(graph):
    """Return a network whose activations stay near one, as in a trained network.

    Random norms enlarge the rounding errors of deep networks until these hide all others.
    """
    net = to_torch(graph)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("norm.weight"):
                tensor.fill_(1)
        for layer in net.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        net(images(16, graph))
    return net.eval()


def exported(graph, **options):
    return tflite_model.model(graph, folded_weights(network(graph)), **options)


def parsed(data):
    return schema.ModelT.InitFromPackedBuf(data)


def operators(data):
    """Return the names of a file's operators in order."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    model = parsed(data)
    (subgraph,) = model.subgraphs
    return [names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in subgraph.operators]


def run(interpreter, batch):
    """Return the output for a batch in torch's layout, as vectors or in torch's layout."""
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    batch = np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
    interpreter.resize_tensor_input(source["index"], batch.shape, strict=True)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], batch)
    interpreter.invoke()
    output = interpreter.get_tensor(result["index"])
    return output if output.ndim == 2 else output.transpose(0, 3, 1, 2)


XNNPACK, BUILT_IN = OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
"""The kernels of XNNPACK, and those that microcontrollers and old runtimes have."""


@torch.inference_mode()
def assert_runs_as_torch_does(graph, net=None, counts=(1, 3), resolvers=(XNNPACK,)):
    """Check the outputs of one interpreter for batches of different sizes."""
    net = net or network(graph)
    data = tflite_model.model(graph, folded_weights(net))
    for resolver in resolvers:
        interpreter = Interpreter(model_content=data, experimental_op_resolver_type=resolver)
        for count in counts:
            batch = images(count, graph)
            expected = run_graph(graph, batch, net).numpy()
            if graph.output_shape[1:] == (1, 1):
                expected = expected[:, :, 0, 0]
            actual = run(interpreter, batch.numpy())
            assert actual.shape == expected.shape
            scale = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("name", SUPPORTED)
def test_small_graphs_run_as_in_torch(name):
    assert_runs_as_torch_does(EXAMPLES[name](), resolvers=(XNNPACK, BUILT_IN))


def test_examples_have_every_op_kind():
    kinds = {op.kind for example in SUPPORTED.values() for op in example().ops}
    assert kinds == set(OP_KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_EVERY_BLOCK)
def test_networks_of_a_space_run_as_in_torch(name):
    graph = load_space(name, image_size=32).smallest.graph
    assert_runs_as_torch_does(graph, calm_network(graph))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet_1.0_complex_bypass"])
def test_published_networks_run_as_in_torch(name):
    graph = find_reference(name)[0].published(name).graph
    assert_runs_as_torch_does(graph, calm_network(graph), counts=(1,))


@pytest.mark.parametrize("kind", ["max_pool", "avg_pool"])
@pytest.mark.parametrize("non_negative", [False, True])
def test_pool_whose_padding_is_not_same_runs_as_in_torch(kind, non_negative):
    assert_runs_as_torch_does(padded_pool(kind, non_negative))


def example(name):
    return exported(EXAMPLES[name]())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # Zeros pad a maximum only where no value is below.
        (lambda: exported(padded_pool("max_pool", False)), "CONV_2D PADV2 MAX_POOL_2D"),
        (lambda: exported(padded_pool("max_pool", True)), "CONV_2D PAD MAX_POOL_2D"),
        # Padding is written only where "same" padding differs: TensorFlow Lite pads a map of even
        # size only at its end, torch on both sides.
        (lambda: example("stem"), "CONV_2D MAX_POOL_2D"),
        (lambda: example("strided"), "CONV_2D PAD DEPTHWISE_CONV_2D CONV_2D"),
        (lambda: example("relu6"), "CONV_2D"),
        (lambda: example("hard_swish"), "CONV_2D HARD_SWISH"),
        # A grouped convolution is one operator.
        (
            lambda: example("grouped"),
            "CONV_2D RESHAPE TRANSPOSE RESHAPE PAD DEPTHWISE_CONV_2D CONV_2D",
        ),
        # So is an int8 convolution with its hard sigmoid.
        (lambda: int8_exported(EXAMPLES["hard_sigmoid"]()), "QUANTIZE CONV_2D DEQUANTIZE"),
    ],
)
def test_operators_are_as_few_as_possible(data, expected):
    assert operators(data()) == expected.split()


@pytest.mark.parametrize("name", ["shuffle_unit", "squeeze_excite", "grouped", "hidden_classifier"])
def test_xnnpack_runs_the_whole_network(name):
    for data in (exported(EXAMPLES[name]()), int8_exported(EXAMPLES[name]())):
        interpreter = Interpreter(model_content=data)
        interpreter.allocate_tensors()
        kinds = [op["op_name"] for op in interpreter._get_ops_details()]
        assert kinds.count("DELEGATE") == 1


def test_file_declares_its_input_and_output():
    data = exported(EXAMPLES["gated"]())
    assert data[4:8] == b"TFL3"
    interpreter = Interpreter(model_content=data)
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert (source["name"], source["dtype"]) == ("image", np.float32)
    assert source["shape_signature"].tolist() == [-1, 9, 9, 12]
    assert (result["name"], result["dtype"]) == ("logits", np.float32)
    assert result["shape_signature"].tolist() == [-1, 7]
    signature = {"serving_default": {"inputs": ["image"], "outputs": ["logits"]}}
    assert interpreter.get_signature_list() == signature


def test_weights_are_named_after_slots_and_aligned():
    graph = EXAMPLES["classifier"]()
    weights = folded_weights(network(graph))
    data = tflite_model.model(graph, weights)
    model = parsed(data)
    constants = {t.name.decode(): t for t in model.subgraphs[0].tensors if t.buffer}
    linear = model.buffers[constants["linear.weight"].buffer].data.tobytes()
    assert linear == weights["linear"].tobytes()
    last = model.buffers[constants["last.weight"].buffer].data.tobytes()
    assert last == weights["last"].transpose(0, 2, 3, 1).tobytes()
    assert data.index(linear) % 16 == data.index(last) % 16 == 0


def test_equal_graphs_make_equal_files():
    graph = EXAMPLES["shuffle_unit_twice"]()
    weights = folded_weights(network(graph))
    assert tflite_model.model(graph, weights) == tflite_model.model(graph.folded, weights)


def test_unknown_op_is_named_with_a_format_that_has_it():
    graph = Graph((Op("input", (), (1, 2, 2)), Op("warp", (0,), (1, 2, 2))))
    with pytest.raises(ExportError, match=r"no counterpart of 'warp', op 1.*'torch'"):
        tflite_model.model(graph, {})


@pytest.mark.parametrize("padding", [0, 1])
def test_average_that_overhangs_at_the_end_only_is_refused(padding):
    count = 5 if padding else 3
    ops = (
        Op("input", (), (4, 8, 8)),
        Op("avg_pool", (0,), (4, count, count), 5 - 2 * padding, 2, padding),
    )
    with pytest.raises(ExportError, match="'avg_pool', op 1 .* overhang a map of 8x8 pixels"):
        tflite_model.model(Graph(ops), {})


def int8_exported(graph, **options):
    return tflite_model.quantised_model(quantised(graph), **options)


@pytest.mark.parametrize("name", SUPPORTED)
def test_int8_is_close_to_the_simulation(name):
    """Compare outputs in steps of their scale.

    XNNPACK rounds halves to the even integer or away from zero, which a sum can double. A hard
    sigmoid behind a convolution is one operator with it, which the simulation rounds in between,
    and a hard swish is three operators. The kernels of TensorFlow Lite round products twice.
    """
    graph = EXAMPLES[name]()
    network, batch = quantised(graph), images(8, graph).numpy()
    data, expected = tflite_model.quantised_model(network), simulate(network, batch)
    has_gate = any(op.kind.startswith("hard") for op in graph.ops)
    for resolver, mean, largest in (
        (XNNPACK, 0.7 if has_gate else 0.15, 6.5 if has_gate else 1.5),
        (BUILT_IN, 0.7, 8.5),
    ):
        interpreter = Interpreter(model_content=data, experimental_op_resolver_type=resolver)
        difference = np.abs(run(interpreter, batch).reshape(expected.shape) - expected)
        steps = difference / network.activations[len(network.graph.ops) - 1].scale
        assert steps.mean() < mean
        assert steps.max() < largest


@pytest.mark.parametrize("name", ["mobilenet_v3", "shufflenet", "squeezenet"])
def test_int8_network_is_as_close_to_float32_as_the_simulation_is(name):
    """Each of the two may round a value of a deep network to another side.

    One such value changes many others behind it, so that the two differ by several steps.
    """
    graph = load_space(name, image_size=32).smallest.graph
    model = TrainedModel(None, calm_network(graph), None)
    network = quantise(model.graph, model.weights, images(16, graph).numpy())
    batch = images(8, graph).numpy()
    actual = run(Interpreter(model_content=tflite_model.quantised_model(network)), batch)
    exact, simulated = model.logits(batch), simulate(network, batch)
    step = network.activations[len(network.graph.ops) - 1].scale
    loss = np.abs(simulated - exact).mean()
    assert np.abs(actual - exact).mean() < 1.2 * loss + step / 2
    assert np.abs(actual - simulated).mean() < 1.2 * loss + step / 2


@pytest.mark.parametrize("name", ["shuffle_unit", "gated"])
def test_int8_output_of_an_image_does_not_depend_on_its_batch(name):
    graph = EXAMPLES[name]()
    interpreter = Interpreter(model_content=int8_exported(graph))
    batch = images(3, graph).numpy()
    together = run(interpreter, batch)
    apart = np.concatenate([run(interpreter, batch[at : at + 1]) for at in range(3)])
    np.testing.assert_array_equal(together, apart)


def test_int8_weights_have_a_scale_for_each_channel_and_biases_are_int32():
    graph = EXAMPLES["inverted_residual"]()
    network = quantised(graph)
    model = parsed(tflite_model.quantised_model(network))
    tensors = {tensor.name.decode(): tensor for tensor in model.subgraphs[0].tensors}
    for slot, axis in (("expand", 0), ("depthwise", 3), ("project", 0)):
        weight, bias = tensors[f"{slot}.weight"], tensors[f"{slot}.bias"]
        assert (weight.type, bias.type) == (schema.TensorType.INT8, schema.TensorType.INT32)
        assert weight.quantization.quantizedDimension == axis
        np.testing.assert_array_equal(weight.quantization.scale, network.weight_scales[slot])
        assert len(bias.quantization.scale) == len(weight.quantization.scale)
        assert not weight.quantization.zeroPoint.any()


def test_int8_file_has_real_numbers_at_its_ends_only():
    data = int8_exported(EXAMPLES["gated"]())
    kinds = operators(data)
    assert (kinds[0], kinds[-1]) == ("QUANTIZE", "DEQUANTIZE")
    real = [
        tensor.name
        for tensor in parsed(data).subgraphs[0].tensors
        if tensor.type == schema.TensorType.FLOAT32
    ]
    assert real == [b"image", b"logits"]


def test_int8_file_for_an_accelerator_has_int8_ends_and_a_hard_swish():
    graph = EXAMPLES["hard_swish"]()
    assert operators(int8_exported(graph))[1:-1] == ["CONV_2D", "ADD", "MUL", "MUL"]
    data = int8_exported(graph, for_accelerator=True)
    assert operators(data) == ["CONV_2D", "HARD_SWISH"]
    (source,) = Interpreter(model_content=data).get_input_details()
    assert (source["dtype"], source["shape_signature"][0]) == (np.int8, 1)
