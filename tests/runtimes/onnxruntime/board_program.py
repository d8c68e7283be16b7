"""Prints as JSON what ONNX Runtime makes of a space on this processor, and what a kernel takes."""

import json

from nas.latency.build import space_kernels
from nas.runtimes.onnxruntime.runtime import OnnxRuntime
from nas.space import load_space


def main() -> None:
    space = load_space("mobilenet_tiny", image_size=8)
    answers = {}
    for dtype in OnnxRuntime.capabilities.dtypes:
        runtime = OnnxRuntime(dtype=dtype)
        kernels = space_kernels(space, runtime)
        if dtype == "float32":  # Quantising needs torch, which a board may lack.
            runtime.compile(space.smallest.graph, {})
        _, timing = runtime.timer.time_kernel(kernels[0])
        texts = [kernel.text for kernel in kernels]
        answers[dtype] = {"kernels": texts, "latency_us": timing.latency_us}
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
