"""A stand-in for a vendor's command-line profiler, whose seconds follow from sizes.

python layer_profiler.py version
python layer_profiler.py layer JSON
python layer_profiler.py network FILE.onnx --batch 1 --calls 1 --samples 10
"""

import json
import math
import sys
from pathlib import Path

if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "version":
        print(json.dumps({"version": "1.2"}))
    elif command == "layer":
        layer = json.loads(arguments[0])
        products = math.prod(layer["weight"] or [1]) * math.prod(layer["output"][1:])
        print(json.dumps({"seconds": [1e-6 + 1e-10 * products * layer["batch"]] * 10}))
    else:
        path, _, batch, _, _, _, samples = arguments
        seconds = 1e-5 + 1e-9 * int(batch) * Path(path).stat().st_size
        print(json.dumps({"seconds": [seconds] * int(samples)}))
