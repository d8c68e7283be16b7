"""Images of no class: a folder of the user's, in which a trained network should recognise nothing.

They judge the confidence of trained networks; no training, search or selection reads them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nas.data.decoding import decode
from nas.data.image_cache import with_channels
from nas.data.sources import Sample, Source, place_in, printable_line
from nas.data.sources.tree import is_image_file, list_tree
from nas.errors import DataError
from nas.files.paths import expanded, in_folder

_REMEDY = (
    "Give unknown in [data] a folder of images that show none of the classes, or leave it out."
)


def open_unlabelled(folder: str | Path, data_source: str | Path | Source) -> Source:
    """Return the images in a folder and in all folders below it as a source without classes.

    Args:
        folder: the folder.
        data_source: where the images with classes are, which the folder must not be a part of.

    Raises:
        DataError: The folder is missing, has no image, or is in a folder whose folders are classes.
    """
    name, path = printable_line(folder), Path(expanded(folder))
    if not path.is_dir():
        kind = "is not a folder" if path.exists() else f"does not exist{in_folder(folder)}"
        raise DataError(f"The folder {name} of unknown images {kind}.", remedy=_REMEDY)
    if not isinstance(data_source, Source):
        root = Path(expanded(data_source))
        if root.is_dir() and path.resolve().is_relative_to(root.resolve()):
            raise DataError(
                f"The folder {name} of unknown images is in {printable_line(data_source)}, whose "
                "folders are classes.",
                remedy="Move it out of there.",
            )
    images = [file for file in list_tree(path)[1] if is_image_file(file)]
    if not images:
        raise DataError(f"The folder {name} of unknown images has no image.", remedy=_REMEDY)
    samples = [Sample("train", place_in(path, file), file, 0) for file in images]
    return Source(name, samples, len(samples), ("unknown",), root=path, files=tuple(images))


def decode_unlabelled(
    source: Source,
    image_size: int,
    channels: int,
    *,
    background: str,
    resize: str = "cover",
    write_cache: bool = True,
) -> np.ndarray:
    """Return the images of a source, `n x image_size x image_size x channels` (uint8).

    Images that cannot be read are left out.

    Raises:
        DataError: No image can be read.
    """
    pixels = np.asarray(
        decode(
            source, image_size, background=background, resize=resize, write_cache=write_cache
        ).pixels
    )
    return with_channels(pixels, channels)
