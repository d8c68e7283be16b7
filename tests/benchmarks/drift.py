"""How often drift is found where there is none, and how soon where there is some.

    python -m tests.benchmarks.drift RUN ID --unknown ../shared/data/hand_signs

The test images of a run are the field: days of 1,000 images without drift, and of 500 images that
are blurred, darker, in another mix of classes, or in part of a class that the network does not
know. Prints how many of the days have an alarm, and what moved. The images of a day are drawn with
replacement.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

import nas
from nas.data.unlabelled import decode_unlabelled, open_unlabelled
from nas.deploy.confidence import largest_probabilities
from nas.deploy.networks import load_trained
from nas.deploy.reference import field_reference
from nas.deploy.script_log import image_figures
from nas.display.console import print_table
from nas.lifecycle.drift import MAX_P_VALUE, measures

DAYS = 100


def blurred(pixels: np.ndarray, radius: float) -> np.ndarray:
    """Return images that are blurred."""
    blur = ImageFilter.GaussianBlur(radius)
    images = (Image.fromarray(each.squeeze()).filter(blur) for each in pixels)
    return np.stack([np.asarray(each).reshape(pixels.shape[1:]) for each in images])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("pick", help="ID of a trained network")
    parser.add_argument("--unknown", type=Path, help="folder of images of another class")
    options = parser.parse_args()
    run = nas.open_run(options.run)
    # The days are drawn from the test images, of which the reference of a refit would be, too.
    model, data = load_trained(run, options.pick).judged, run.data
    reference = field_reference(model, data.part(*run.images.judging_parts), "0" * 64)
    pixels, rng = np.asarray(data.test.pixels[:]), np.random.default_rng(0)

    def seen(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits = model.pixel_logits(images)
        values = np.column_stack([largest_probabilities(logits), image_figures(images)])
        return values, logits.argmax(1)

    usual = seen(pixels)
    weights = np.linspace(1, 0.2, len(data.classes))[data.test.labels]
    fields = {
        "none, 1,000 images": (1000, usual, None),
        "none, 500 images": (500, usual, None),
        "blur, radius 0.5 pixels": (500, seen(blurred(pixels, 0.5)), None),
        "blur, radius 1 pixel": (500, seen(blurred(pixels, 1)), None),
        "brightness 0.8": (500, seen((pixels * 0.8).astype(np.uint8)), None),
        "brightness 0.5": (500, seen((pixels * 0.5).astype(np.uint8)), None),
        "classes in shares of 1 to 0.2": (500, usual, weights / weights.sum()),
    }
    if options.unknown:
        folder = open_unlabelled(options.unknown, "digits")
        other = decode_unlabelled(folder, data.image_size, data.channels, data.background)
        for share in (0.1, 0.3):
            count = round(len(pixels) * share / (1 - share))
            mixed = np.concatenate([pixels, other[rng.integers(0, len(other), count)]])
            fields[f"{share:.0%} of another class"] = (500, seen(mixed), None)
    rows = []
    for name, (images, (values, classes), shares) in fields.items():
        alarms, shown, moved = 0, 0, Counter[str]()
        for _ in range(DAYS):
            day = rng.choice(len(classes), images, p=shares)
            compared = measures(reference, values[day], classes[day])
            names = [each.name for each in compared if each.moved]
            alarms += bool(names)
            shown += any(each.p_value <= MAX_P_VALUE for each in compared)
            moved.update(names)
        rows.append((name, alarms, shown, ", ".join(f"{each} {n}" for each, n in moved.items())))
    print_table(["drift", "days with an alarm, of 100", "with a low p-value", "what moved"], rows)


if __name__ == "__main__":
    main()
