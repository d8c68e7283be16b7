"""`run.py` of a model folder: a short script that classifies an image without this package."""

from __future__ import annotations

from collections.abc import Mapping

_START = '''\
"""Classify an image: python run.py IMAGE [MODEL]"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

folder = Path(__file__).resolve().parent
how = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
path = sys.argv[2] if len(sys.argv) > 2 else str(folder / "@MODEL@")

image = ImageOps.exif_transpose(Image.open(sys.argv[1]))
image = image.convert("L" if how["channels"] == 1 else "RGB")
side = how["image_size"]
image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
pixels = np.asarray(image, np.float32).reshape(1, side, side, how["channels"]) / 255
pixels = ((pixels - how["mean"]) / how["std"]).astype(np.float32)

'''

_ONNX = """\
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when ONNX Runtime is imported
import onnxruntime

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
logits = session.run([how["output_name"]], {how["input_name"]: images})[0][0]
"""

_LITERT = """\
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter(path)
interpreter.allocate_tensors()
(entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
if entry["dtype"] == np.int8:
    scale, zero = entry["quantization"]
    pixels = np.clip(np.round(pixels / scale) + zero, -128, 127).astype(np.int8)
interpreter.set_tensor(entry["index"], pixels)
interpreter.invoke()
logits = interpreter.get_tensor(result["index"])[0].astype(np.float32)
if result["dtype"] == np.int8:
    scale, zero = result["quantization"]
    logits = (logits - zero) * scale
"""

_END = """\

confidence = np.exp(logits - logits.max())
confidence /= confidence.sum()
for position in confidence.argsort()[::-1][:5]:
    print(f"{confidence[position]:6.1%}  {how['classes'][position]}")
"""

_RUNTIMES = {"onnx": _ONNX, "onnx-int8": _ONNX, "tflite": _LITERT, "tflite-int8": _LITERT}
"""The part of the script that runs a file, by format. The first one that was exported is used."""

REQUIREMENTS = {
    "onnx": "onnxruntime numpy pillow",
    "onnx-int8": "onnxruntime numpy pillow",
    "tflite": "ai-edge-litert numpy pillow",
    "tflite-int8": "ai-edge-litert numpy pillow",
}
"""Packages that the script imports, by format."""


def script_format(formats: Mapping[str, str]) -> str | None:
    """Return the format that the script runs; None if there is no script for any of the formats."""
    return next((name for name in _RUNTIMES if name in formats), None)


def run_script(formats: Mapping[str, str]) -> str | None:
    """Return the text of `run.py`; None if none of the formats has a runtime for it.

    Args:
        formats: file of each exported format.
    """
    chosen = script_format(formats)
    if chosen is None:
        return None
    text = _START + _RUNTIMES[chosen] + _END
    return text.replace("@MODEL@", formats[chosen])
