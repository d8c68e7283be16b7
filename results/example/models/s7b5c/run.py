"""Classify an image: python run.py IMAGE [MODEL]"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

folder = Path(__file__).resolve().parent
how = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
path = sys.argv[2] if len(sys.argv) > 2 else str(folder / "model.onnx")

image = ImageOps.exif_transpose(Image.open(sys.argv[1]))
image = image.convert("L" if how["channels"] == 1 else "RGB")
side = how["image_size"]
image = ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR)
pixels = np.asarray(image, np.float32).reshape(1, side, side, how["channels"]) / 255
pixels = ((pixels - how["mean"]) / how["std"]).astype(np.float32)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when ONNX Runtime is imported
import onnxruntime

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
images = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
logits = session.run([how["output_name"]], {how["input_name"]: images})[0][0]

confidence = np.exp(logits - logits.max())
confidence /= confidence.sum()
for position in confidence.argsort()[::-1][:5]:
    print(f"{confidence[position]:6.1%}  {how['classes'][position]}")
