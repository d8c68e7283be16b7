"""A stand-in for a vendor's command-line profiler, which really runs what it is asked to time.

python layer_profiler.py version
python layer_profiler.py layer JSON
python layer_profiler.py network FILE.onnx --batch 1 --calls 1 --samples 10
"""

import json
import sys
import time

SAMPLES, CALLS = 10, 20


def layer(settings: dict) -> list[float]:
    """Seconds of one layer, as an ONNX model of one node."""
    from onnx import TensorProto, helper

    batch, window = settings["batch"], [settings["kernel"]] * 2
    pads, strides = [settings["padding"]] * 4, [settings["stride"]] * 2
    pool = {"kernel_shape": window, "pads": pads, "strides": strides}
    node, attributes = {
        "conv2d": ("Conv", {**pool, "group": settings["groups"]}),
        "linear": ("Gemm", {"transB": 1}),
        "max_pool": ("MaxPool", {**pool, "ceil_mode": 1}),
        "avg_pool": ("AveragePool", {**pool, "ceil_mode": 1}),
        "global_pool": ("GlobalAveragePool", {}),
        "concat": ("Concat", {"axis": 1}),
        "copy": ("Relu", {}),
    }[settings["kind"]]
    shapes = [[batch, *shape] for shape in settings["inputs"]]
    if node == "Gemm":
        shapes = [[batch, shapes[0][1]]]
    if node != "Concat":
        shapes = shapes[:1]
    if settings["weight"]:
        shapes.append(settings["weight"])
    names = [f"x{i}" for i in range(len(shapes))]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node(node, names, ["y"], **attributes)], "g", values, [output]
    )
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return run(model.SerializeToString(), dict(zip(names, shapes, strict=True)), CALLS, SAMPLES)


def network(path: str, batch: int, calls: int, samples: int) -> list[float]:
    """Seconds of one inference of an ONNX model."""
    return run(path, {}, calls, samples, batch)


def run(model, shapes: dict, calls: int, samples: int, batch: int = 1) -> list[float]:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {
        each.name: np.zeros(shapes.get(each.name, (batch, *each.shape[1:])), np.float32)
        for each in session.get_inputs()
    }
    return timed(lambda: session.run(None, feed), calls, samples)


def timed(run, calls: int, samples: int) -> list[float]:
    run()
    seconds = []
    for _ in range(samples):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        seconds.append((time.perf_counter() - start) / calls)
    return seconds


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "version":
        print(json.dumps({"version": "1.2"}))
    elif command == "layer":
        print(json.dumps({"seconds": layer(json.loads(arguments[0]))}))
    else:
        path, _, batch, _, calls, _, samples = arguments
        print(json.dumps({"seconds": network(path, int(batch), int(calls), int(samples))}))
