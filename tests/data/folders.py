"""Image folders and parquet files of small images."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.data.image_files import in_format

CLASSES = ("ant", "bee", "cow")


def plain(value: int) -> bytes:
    """Return an image file of one colour, which scaling does not change; its red is the value."""
    return in_format(Image.new("RGB", (4, 4), (value, 255 - value, 7)), "PNG")


def add_images(folder: Path, count: int, first: int = 0) -> None:
    """Write image files of one colour, whose reds are numbers from the first one on."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index}.png").write_bytes(plain(first + index))


def add_classes(root: Path, per_class: int = 6, classes=CLASSES) -> Path:
    """Write an image folder, whose reds begin with 0, 50 and 100."""
    for label, name in enumerate(classes):
        add_images(root / name, per_class, 50 * label)
    return root


def write_noise(folder: Path, shape: tuple[int, ...]) -> Path:
    """Write an image folder of two classes with 30 images each, of random pixels."""
    rng = np.random.default_rng(0)
    for name in ("bee", "cow"):
        (folder / name).mkdir(parents=True)
        for index in range(30):
            pixels = rng.integers(0, 256, shape, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def class_label(names) -> str:
    """Return the metadata of `datasets` for class names."""
    label = {"names": names, "_type": "ClassLabel"}
    return json.dumps({"info": {"features": {"image": {"_type": "Image"}, "label": label}}})


def write_parquet(path: Path, images, labels, metadata: str | None = None, **options) -> Path:
    """Write a parquet file of images, or of the reds of plain ones."""
    if not isinstance(images, pa.Array):
        images = [plain(each) if isinstance(each, int) else each for each in images]
    table = pa.table({"image": images, "label": labels})
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path, **options)
    return path
