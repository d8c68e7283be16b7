"""Declares an activation in the graph, and prints as JSON what each reader of graphs says of it.

It is a process of its own, because modules copy the set of activations when they are imported.
"""

import json
from collections.abc import Callable

import nas.graph

KIND = "leaky_relu"
nas.graph.OP_KINDS[KIND] = nas.graph.OP_KINDS["relu"]
nas.graph.ACTIVATIONS |= {KIND}

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

import nas  # noqa: E402
from nas import onnx_model, tflite_model, torch_kernels  # noqa: E402
from nas.deploy.torch_source import TorchSource  # noqa: E402
from nas.latency.installed_runtimes import configured_runtime, runtime_class  # noqa: E402
from nas.latency.networks import random_weights  # noqa: E402
from nas.quantisation.post_training import quantise  # noqa: E402
from nas.space.builder import Builder  # noqa: E402
from nas.torch_network import FoldedWeights, folded_weights, run_graph  # noqa: E402


def make_graph() -> nas.Graph:
    build = Builder((3, 8, 8), classes=4, norm=True, activation=KIND)
    x = build.conv_unit(build.input, "first", 16, kernel=3)
    y = build.conv_unit(x, "second", 16, kernel=3, activate=False)
    z = build.conv_unit(build.add(x, y), "third", 16)
    build.linear(build.global_pool(z), "head", 4)
    return build.graph()


def error_of(read: Callable[[], object]) -> str:
    try:
        read()
    except Exception as error:
        return str(error)
    return "no error"


def main() -> None:
    graph = make_graph()
    folded = graph.folded
    random = random_weights(folded, np.random.default_rng(0))
    tensors = FoldedWeights({key: torch.from_numpy(each) for key, each in random.items()})
    images = np.random.default_rng(1).standard_normal((32, 3, 8, 8), np.float32)
    batch = torch.from_numpy(images)
    errors = {
        "torch network": error_of(lambda: nas.to_torch(graph)(batch)),
        "torch interpreter": error_of(lambda: run_graph(folded, batch, tensors)),
        "torch source": error_of(lambda: TorchSource(graph).class_source),
        "onnx": error_of(lambda: onnx_model.model(graph, random)),
        "tflite": error_of(lambda: tflite_model.model(graph, random)),
        "tvm": error_of(lambda: _tvm_kernel(graph)),
    }
    for name in ("onnxruntime", "litert"):
        if runtime_class(name).availability().usable:
            for dtype in ("float32", "int8"):
                runtime = configured_runtime(name, dtype=dtype)
                errors[f"{name} {dtype}"] = error_of(
                    lambda runtime=runtime: runtime.compile(graph, {}, random)
                )

    # The rest needs the activation in torch.
    torch_kernels.ACTIVATIONS[KIND] = F.leaky_relu
    network = nas.to_torch(graph).eval()
    weights = folded_weights(network)
    own = FoldedWeights({key: torch.from_numpy(each) for key, each in weights.items()})
    with torch.no_grad():
        torch.testing.assert_close(
            run_graph(folded, batch, own).flatten(1), network(batch), rtol=1e-4, atol=1e-4
        )
    quantised = quantise(folded, weights, images)
    errors["onnx int8"] = error_of(lambda: onnx_model.quantised_model(quantised))
    errors["tflite int8"] = error_of(lambda: tflite_model.quantised_model(quantised))
    print(json.dumps(errors))


def _tvm_kernel(graph: nas.Graph) -> None:
    from nas.kernels import fusion
    from nas.schedules.epilogue import apply_steps, epilogue_steps
    from nas.schedules.tir import broadcast

    kernel = next(each for each in fusion.kernels(graph) if KIND in each.epilogue)
    value = broadcast(1.0, 4)
    apply_steps(epilogue_steps(kernel), value, lambda step: value, 4)


if __name__ == "__main__":
    main()
