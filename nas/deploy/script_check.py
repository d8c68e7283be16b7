"""`run.py --check`: whether a model answers on a device as it did at its export.

The `run.py` of a model folder holds a copy of this text, so that it imports NumPy and Pillow only.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nas.data.image_reading import UnreadableImageError
from nas.deploy.script_steps import LogitsOf, as_input, decoded, plain_output, use_file

INT8_SHARE = 0.99
"""Share of the images whose logits must be within the tolerance in int8. Runtimes round halves
differently; in a deep network a few images are far off, as they are from float32."""


def check(
    card: dict[str, Any],
    samples: Path,
    model: Path,
    logits_of: LogitsOf,
    preprocessing: dict[str, Any],
) -> int:
    """Classify the images of a model folder, and compare their logits with those of the export.

    Args:
        card: what `card.json` holds.
        samples: `verification.safetensors` of the folder.
        model: file of the network.
        logits_of: returns its logits.
        preprocessing: what `preprocessing.json` holds.

    Returns:
        0, or 1 if too many images have other logits.
    """
    plain_output()
    known = {each["file"]: each for each in card["files"] if each["tolerance"] is not None}
    if model.name not in known:
        sys.exit(f"{model}: expected a file that the export compared: {', '.join(known)}")
    is_int8 = known[model.name]["precision"] == "int8"
    tensors = use_file(samples, read_tensors, samples)
    kinds = json.loads(tensors["file_kinds"].tobytes())
    stored = [
        (kind, each) for at, (kind, _) in enumerate(kinds) if len(each := tensors[f"file_{at}"])
    ]
    expected = tensors["int8_logits" if is_int8 else "logits"]
    images = [each[None] for each in tensors["pixels"][: len(expected) - len(stored)]]
    require_reading(tensors["pixels"][:1], preprocessing)
    for kind, each in stored:
        try:
            images.append(decoded(io.BytesIO(each.tobytes()), preprocessing))
        except UnreadableImageError as error:
            sys.exit(f"images of the data ({kind}) are not read here: {error}")
    allowed = known[model.name]["tolerance"] * expected.std()
    right = 0
    for pixels, logits in zip(images, expected, strict=True):
        own = use_file(model, logits_of, as_input(pixels, preprocessing))
        right += own.shape == logits.shape and bool((np.abs(own - logits) <= allowed).all())
    text = f"{model.name}: {right} of {len(images)} images have the answers of the export"
    if right < int((INT8_SHARE if is_int8 else 1.0) * len(images)):
        print(f"{text}. Use another format on this machine.", file=sys.stderr)
        return 1
    print(f"{text}.")
    return 0


def require_reading(pixels: np.ndarray, preprocessing: dict[str, Any]) -> None:
    """End with one line if an image file without losses is not read as it was written.

    Args:
        pixels: decoded pixels, `1 x height x width x channels` (uint8).
        preprocessing: what `preprocessing.json` holds.
    """
    file = io.BytesIO()
    Image.fromarray(pixels[0].squeeze(-1) if pixels.shape[-1] == 1 else pixels[0]).save(file, "PNG")
    try:
        is_same = np.array_equal(decoded(file, preprocessing), pixels)
    except UnreadableImageError as error:
        sys.exit(f"images are not read here: {error}")
    if not is_same:
        sys.exit("images are not read here as at the export: a PNG has other pixels")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a safetensors file whose types are those of `verification`."""
    types = {"F32": "<f4", "I64": "<i8", "U8": "u1"}
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, each in json.loads(content[8:start]).items():
        first, last = (start + offset for offset in each["data_offsets"])
        values = np.frombuffer(content[first:last], types[each["dtype"]])
        tensors[name] = values.reshape(each["shape"])
    return tensors
