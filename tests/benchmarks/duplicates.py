"""Which changes of an image leave it a near duplicate, and how many a dataset has.

    python -m tests.benchmarks.duplicates ../shared/data/cifar10 --images 2000

Some images are changed and added to all others; the table has the share of them that is found to be
a duplicate of its original, and the share of pairs with another image.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from nas import load_dataset
from nas.data.check import check_data
from nas.data.duplicates import find_duplicates

Change = Callable[[Image.Image], Image.Image]


def compressed(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(io.BytesIO(file.getvalue()))

    return change


def cropped(share: float, *, is_centred: bool) -> Change:
    def change(image: Image.Image) -> Image.Image:
        side = image.width
        end = side * (1 - share) if is_centred else side
        box = (side * share, side * share, end, end)
        return image.resize((side, side), Image.Resampling.BILINEAR, box)

    return change


def scaled(factor: float) -> Change:
    return lambda image: image.point(lambda value: min(255, round(value * factor)))


CHANGES: dict[str, Change] = {
    "JPEG, quality 75": compressed(75),
    "JPEG, quality 30": compressed(30),
    "JPEG, quality 10": compressed(10),
    "30% darker": scaled(0.7),
    "30% brighter": scaled(1.3),
    "crop of 3% at each side": cropped(0.03, is_centred=True),
    "crop of 5% at each side": cropped(0.05, is_centred=True),
    "crop of 3% at two sides": cropped(0.03, is_centred=False),
    "crop of 6% at two sides": cropped(0.06, is_centred=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="images that are changed")
    arguments = parser.parse_args()
    data = load_dataset(arguments.source, on_bad_image="skip")
    check = check_data(data)
    for part, count in check.leaked.items():
        print(f"{part}: {count} of {data.counts[part]} have a duplicate in training")
    print(f"pairs by parts: {dict(check.duplicates)}; of two classes: {check.conflicts}")
    pixels = np.asarray(data.test.pixels)
    if pixels.shape[3] == 1:
        pixels = np.repeat(pixels, 3, axis=3)
    own = {tuple(pair) for pair in find_duplicates(pixels).pairs.tolist()}
    chosen = np.random.default_rng(0).permutation(len(pixels))[: arguments.images]
    for name, change in CHANGES.items():
        changed = [np.asarray(change(Image.fromarray(pixels[at]))) for at in chosen]
        pairs = find_duplicates(np.concatenate([pixels, np.stack(changed)])).pairs.tolist()
        expected = {(int(at), len(pixels) + n) for n, at in enumerate(chosen)}
        found = {tuple(pair) for pair in pairs}
        others = len(found - expected - own)
        print(f"{name:26} {len(found & expected) / len(chosen):6.1%}, {others} other pairs")


if __name__ == "__main__":
    main()
