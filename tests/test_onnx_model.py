import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, shape_inference

from nas import onnx_model
from nas.graph import OP_KINDS, Graph, Op
from nas.space import load_space
from nas.space.builder import Builder
from nas.torch_network import Network, folded_weights, run_graph
from tests.latency.example_graphs import GRAPHS
from tests.spaces import WITH_EVERY_BLOCK


def build(image=(12, 9, 9), norm=True):
    return Builder(image, classes=7, norm=norm, activation="relu")


def activation(kind):
    b = build()
    b.activate(b.conv_unit(b.input, "a", 8, kernel=3, activate=False), kind)
    return b.graph()


def gated():
    """Return a squeeze-excite between convolutions (Howard et al. 2019)."""
    b = build()
    x = b.conv_unit(b.input, "in", 16, activate="hard_swish")
    gate = b.conv(b.global_pool(x), "reduce", 4, bias=True)
    gate = b.conv(b.activate(gate), "expand", 16, bias=True)
    x = b.multiply(x, b.activate(gate, "hard_sigmoid"))
    b.linear(b.global_pool(b.conv_unit(x, "out", 8)), "classes", 7)
    return b.graph()


def vectors():
    """Return a graph in which linear layers are read as vectors, and as a gate of a map."""
    b = build()
    x = b.conv_unit(b.input, "in", 6)
    hidden = b.activate(b.linear(b.global_pool(x), "hidden", 6), "hard_swish")
    gate = b.activate(b.linear(hidden, "gate", 6), "hard_sigmoid")
    b.linear(b.add(hidden, b.global_pool(b.multiply(x, gate))), "classes", 7)
    return b.graph()


def pool(kind, kernel, stride, padding, image=(4, 8, 8)):
    b = build(image)
    x = b.conv_unit(b.input, "a", 8, activate=False)
    getattr(b, kind)(x, "pool", kernel=kernel, stride=stride, padding=padding)
    return b.graph()


def grouped():
    """Return grouped convolutions with a shuffle of three groups between, as in ShuffleNetV1."""
    b = build()
    x = b.shuffle(b.conv_unit(b.input, "a", 18, groups=3), 3)
    b.conv_unit(x, "b", 30, kernel=3, stride=2, groups=3, activate=False)
    return b.graph()


def unpadded():
    b = build(norm=False)
    x = b.conv_unit(b.input, "a", 5, kernel=4, stride=2, padding="valid")
    b.conv(x, "b", 6, kernel=2, padding="valid")
    return b.graph()


def three_parts():
    """Return slices of one tensor with each channel once, and slices of another that overlap."""
    shape = (6, 4, 4)
    return Graph(
        (
            Op("input", (), shape),
            Op("slice", (0,), (1, 4, 4), start=5),
            Op("relu", (0,), shape),
            Op("slice", (2,), (4, 4, 4), start=0),
            Op("slice", (2,), (4, 4, 4), start=2),
            Op("slice", (0,), (3, 4, 4), start=2),
            Op("slice", (0,), (2, 4, 4), start=0),
            Op("concat", (1, 3, 4, 5, 6), (14, 4, 4)),
        )
    )


EXAMPLES = {
    **GRAPHS,
    "relu": lambda: activation("relu"),
    "relu6": lambda: activation("relu6"),
    "hard_swish": lambda: activation("hard_swish"),
    "hard_sigmoid": lambda: activation("hard_sigmoid"),
    "gated": gated,
    "vectors": vectors,
    "max_pool": lambda: pool("max_pool", 3, 2, "same"),
    "max_pool_overhanging": lambda: pool("max_pool", 3, 2, "valid"),
    "max_pool_fitting": lambda: pool("max_pool", 3, 2, "valid", (4, 9, 9)),
    "avg_pool": lambda: pool("avg_pool", 3, 2, "same"),
    "avg_pool_overhanging": lambda: pool("avg_pool", 3, 2, "valid"),
    "avg_pool_fitting": lambda: pool("avg_pool", 2, 2, "valid"),
    "avg_pool_overhanging_below": lambda: pool("avg_pool", 5, 3, "valid", (4, 9, 11)),
    "grouped_and_shuffled": grouped,
    "unpadded": unpadded,
    "three_parts": three_parts,
}


def network(graph, seed=0):
    """Return a network whose norms all change their input, so that a wrong folding shows."""
    generator = torch.Generator().manual_seed(seed)
    net = Network(graph, generator)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var") or name.endswith("norm.weight"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.dim() == 1:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return net.eval()


def images(count, graph):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *graph.input_shape, generator=generator)


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    data = model.SerializeToString()
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@torch.inference_mode()
def assert_runs_as_torch_does(graph):
    """Check the model, its shapes, and its output for batches of one and of three.

    Torch computes in float64, so that its own rounding does not add to that of the model.
    """
    net = network(graph)
    model = onnx_model.model(graph, folded_weights(net))
    net.double()
    onnx.checker.check_model(model, full_check=True)
    runtime = session(model)
    vector = graph.output_shape[1:] == (1, 1)
    for count in (1, 3):
        batch = images(count, graph)
        expected = run_graph(graph, batch.double(), net).numpy()
        expected = expected[:, :, 0, 0] if vector else expected
        (actual,) = runtime.run(["logits"], {"image": batch.numpy()})
        assert actual.shape == expected.shape
        scale = max(1.0, float(np.abs(expected).max()))
        assert count == 1 or expected.std(0).max() > 0.01 * scale  # else all outputs are close
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_EVERY_BLOCK)
def test_networks_of_a_space_run_as_in_torch(name):
    space = load_space(name, image_size=32)
    for architecture in (space.largest, space.sample(np.random.default_rng(0))):
        assert_runs_as_torch_does(architecture.graph)


@pytest.mark.parametrize("name", EXAMPLES)
def test_small_graphs_run_as_in_torch(name):
    assert_runs_as_torch_does(EXAMPLES[name]())


def test_examples_have_every_op_kind():
    """A new kind needs an implementation in ONNX and torch, and an example that compares them."""
    kinds = {op.kind for example in EXAMPLES.values() for op in example().ops}
    assert kinds == set(OP_KINDS)


def exported(graph):
    return onnx_model.model(graph, folded_weights(network(graph)))


def kinds(model):
    return [node.op_type for node in model.graph.node]


def attributes(model, kind):
    (node,) = [node for node in model.graph.node if node.op_type == kind]
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def test_model_declares_version_input_and_output():
    model = exported(EXAMPLES["gated"]())
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (
        onnx_model.IR_VERSION,
        [("", onnx_model.OPSET)],
    )
    sizes = [
        (
            value.name,
            [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert sizes == [("image", ["batch", 12, 9, 9]), ("logits", ["batch", 7])]


def test_only_the_batch_size_is_dynamic():
    """A runtime cannot plan its memory if a shuffle or a pool makes another size dynamic."""
    for name in ("shuffle_unit_twice", "max_pool_overhanging", "squeezenet_head", "vectors"):
        inferred = shape_inference.infer_shapes(
            exported(EXAMPLES[name]()), strict_mode=True, data_prop=True
        )
        values = [*inferred.graph.value_info, *inferred.graph.output]
        assert {output for n in inferred.graph.node for output in n.output} == {
            value.name for value in values
        }
        for value in values:
            batch, *sizes = value.type.tensor_type.shape.dim
            assert batch.dim_param == "batch", value.name
            assert all(size.dim_value > 0 for size in sizes), value.name


def test_nodes_and_initialisers_are_named_after_slots():
    model = exported(EXAMPLES["inverted_residual"]())
    assert [n.name for n in model.graph.node] == [
        "expand",
        "relu6_2",
        "depthwise",
        "relu6_4",
        "project",
        "add_6",
    ]
    slots = ("expand", "depthwise", "project")
    assert [tensor.name for tensor in model.graph.initializer] == [
        "expand.weight",
        "expand.bias",
        "float32_0.0",
        "float32_6.0",
        *(f"{slot}.{part}" for slot in slots[1:] for part in ("weight", "bias")),
    ]


def test_slots_may_have_the_name_of_anything_else():
    b = build((2, 3, 3), norm=False)
    slots = ["a", "a.weight", "a.bias", "image", "logits", "relu6_3", "float32_6.0"]
    x = b.input
    for slot in slots:
        x = b.activate(b.conv(x, slot, 2), "relu6")
    model = onnx_model.model(
        b.graph(), {slot: np.eye(2).astype("f")[..., None, None] for slot in slots}
    )
    onnx.checker.check_model(model, full_check=True)
    batch = images(1, b.graph()).numpy()
    np.testing.assert_allclose(session(model).run(None, {"image": batch})[0], batch.clip(0, 6))
    outputs = [output for n in model.graph.node for output in n.output]
    tensors = ["image", *(t.name for t in model.graph.initializer), *outputs]
    assert len(tensors) == len(set(tensors))
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)


def test_initialisers_are_weights_of_the_folded_graph():
    graph = EXAMPLES["classifier"]()
    weights = folded_weights(network(graph))
    model = onnx_model.model(graph, weights)
    written = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert set(written) == {"last.weight", "last.bias", "linear.weight", "linear.bias"}
    for slot in ("last", "linear"):
        np.testing.assert_array_equal(written[f"{slot}.weight"], weights[slot])
        np.testing.assert_array_equal(written[f"{slot}.bias"], weights[f"{slot}.bias"])
    again = onnx_model.model(graph.folded, weights)
    assert again.SerializeToString() == model.SerializeToString()


def test_equal_constants_share_one_initialiser():
    model = exported(EXAMPLES["shuffle_unit_twice"]())
    constants = [t for t in model.graph.initializer if not t.name.endswith((".weight", ".bias"))]
    assert [numpy_helper.to_array(t).tolist() for t in constants] == [
        [10, 10],
        [0, 2, 10, 6, 6],
        [0, 20, 6, 6],
    ]


def test_slices_with_each_channel_once_are_one_split():
    assert kinds(exported(EXAMPLES["shuffle_unit_twice"]())).count("Split") == 2
    assert "Slice" not in kinds(exported(EXAMPLES["shuffle_unit_twice"]()))
    assert kinds(exported(three_parts())) == ["Split", "Relu", "Slice", "Slice", "Concat"]


def test_only_overhanging_pool_has_ceil_mode():
    ends = ("", "_fitting", "_overhanging")
    for kind, onnx_op in (("max_pool", "MaxPool"), ("avg_pool", "AveragePool")):
        pools = [attributes(exported(EXAMPLES[f"{kind}{end}"]()), onnx_op) for end in ends]
        written = [(pool["ceil_mode"], pool["pads"]) for pool in pools]
        assert written == [(0, [1] * 4), (0, [0] * 4), (1, [0] * 4)]


def test_average_that_overhangs_its_padding_is_refused():
    ops = (Op("input", (), (4, 8, 8)), Op("avg_pool", (0,), (4, 5, 5), 3, 2, 1))
    with pytest.raises(ValueError, match="overhang the padding"):
        onnx_model.model(Graph(ops), {})


def test_unknown_op_is_named():
    graph = Graph((Op("input", (), (1, 2, 2)), Op("warp", (0,), (1, 2, 2))))
    with pytest.raises(ValueError, match="'warp'"):
        onnx_model.model(graph, {})


def test_weights_that_do_not_fit_are_named():
    graph = EXAMPLES["classifier"]()
    weights = folded_weights(network(graph))
    for wrong in (weights["last"][:, :, 0, 0], weights["last"].astype(np.float64)):
        with pytest.raises(ValueError, match=r"last\.weight is .*, not float32 \(70, 10, 1, 1\)"):
            onnx_model.model(graph, {**weights, "last": wrong})
    del weights["linear.bias"]
    with pytest.raises(KeyError, match=r"linear\.bias"):
        onnx_model.model(graph, weights)


def test_saved_model_is_read_back_equal(tmp_path):
    graph = EXAMPLES["classifier"]()
    path = tmp_path / "network.onnx"
    onnx_model.save(exported(EXAMPLES["stem"]()), path)
    onnx_model.save(exported(graph), path)
    assert onnx.load(path) == exported(graph)
    with pytest.raises(ValueError, match=r"'network\.pb'"):
        onnx_model.save(exported(graph), tmp_path / "network.pb")
    assert list(tmp_path.iterdir()) == [path]
