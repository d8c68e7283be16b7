"""What a trained network answers on the images that judge it: confused classes, worst mistakes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nas.data import ImageDataset, Part
from nas.run.answers import MAX_MISTAKES, Answers, ConfusedPair, Mistake

MAX_SIDE = 64
"""Side in pixels of a picture. A larger image is reduced."""

MAX_PNG_SIDE = 32
"""Side in pixels up to which a picture is a PNG: a JPEG of few pixels is mostly headers."""

_JPEG_QUALITY = 80

_THUMBNAIL_SIDE = 96
_COLUMNS = 8
"""Side of a picture in the sheet of all pictures, in pixels; number of pictures in its rows."""


def find_answers(
    logits: NDArray[np.float32],
    data: ImageDataset,
    parts: Sequence[Part] = ("holdout",),
    *,
    pictures: bool,
) -> Answers:
    """Return what a network answered on the images of some parts of a dataset.

    Args:
        logits: its logits for these images, `n x classes`.
        data: the dataset.
        parts: the parts, see `nas.run.judged.JudgedImages.judging_parts`.
        pictures: whether the mistakes get their images.
    """
    judging = data.part(*parts)
    labels, classes = judging.labels, logits.argmax(1)
    wrong = np.flatnonzero(classes != labels)
    pairs, counts = np.unique(np.stack([labels, classes])[:, wrong], axis=1, return_counts=True)
    by_count = np.argsort(-counts, kind="stable")
    confidences = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")][:MAX_MISTAKES]
    images, files = judging.take(worst).pixels, _file_names(data, parts)
    by_class = np.argsort(labels, kind="stable")
    # The sum of probabilities is rounded, so that the largest may be slightly above 1.
    shown = np.minimum(confidences[by_class], 1).astype("<f4")
    groups = b""
    if judging.groups is not None and judging.has_groups:
        numbers = np.unique(judging.groups, return_inverse=True)[1]
        groups = numbers[by_class].astype("<u4").tobytes()
    return Answers(
        schema=3,
        classes=data.classes,
        counts=tuple(np.bincount(labels, minlength=len(data.classes)).tolist()),
        right=base64.b64encode(np.packbits((classes == labels)[by_class]).tobytes()).decode(),
        confidences=base64.b64encode(shown.tobytes()).decode(),
        confused=tuple(
            ConfusedPair(
                label=int(pairs[0, at]), predicted=int(pairs[1, at]), images=int(counts[at])
            )
            for at in by_count
        ),
        mistakes=tuple(
            Mistake(
                label=int(labels[at]),
                predicted=int(classes[at]),
                confidence=min(1.0, round(float(confidences[at]), 4)),
                file=files[at] if files else "",
                picture=_data_uri(pixels) if pictures else "",
            )
            for at, pixels in zip(worst.tolist(), np.asarray(images[:]), strict=True)
        ),
        has_pictures=pictures,
        groups=base64.b64encode(groups).decode(),
    )


def draw_sheet(answers: Answers) -> bytes | None:
    """Return a JPEG with the pictures of all mistakes in rows of eight; None without any."""
    pictures = [each.picture for each in answers.mistakes if each.picture]
    if not pictures:
        return None
    rows = -(-len(pictures) // _COLUMNS)
    size = (min(len(pictures), _COLUMNS) * _THUMBNAIL_SIDE, rows * _THUMBNAIL_SIDE)
    sheet = Image.new("RGB", size, "white")
    inner = _THUMBNAIL_SIDE - 4
    for number, picture in enumerate(pictures):
        row, column = divmod(number, _COLUMNS)
        image = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2])))
        scaled = image.convert("RGB").resize((inner, inner), Image.Resampling.NEAREST)
        sheet.paste(scaled, (column * _THUMBNAIL_SIDE + 2, row * _THUMBNAIL_SIDE + 2))
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=_JPEG_QUALITY)
    return content.getvalue()


def _file_names(data: ImageDataset, parts: Sequence[Part]) -> list[str]:
    """Return where each image of some parts is, below the source; empty if that is not known."""
    if data.inventory is None:
        return []
    # The images of a part are in the order of the source.
    places = np.concatenate([np.flatnonzero(data.inventory.parts == each) for each in parts])
    return [data.inventory.locations[at] for at in places]


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    """Return an image `height x width x channels` as a data URI, reduced to `MAX_SIDE`."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    is_small = max(image.size) <= MAX_PNG_SIDE
    content = io.BytesIO()
    if is_small:
        image.save(content, "PNG", optimize=True)
    else:
        image.save(content, "JPEG", quality=_JPEG_QUALITY)
    text = base64.b64encode(content.getvalue()).decode()
    return f"data:image/{'png' if is_small else 'jpeg'};base64,{text}"
