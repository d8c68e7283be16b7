"""Parquet files in the layout of Hugging Face `datasets`: each row is one image.

The column `image` holds an encoded image, or a struct of `bytes` and `path`. The path is relative
to the parquet file; it is used only if there are no bytes. The column `label` holds integers or
strings. The class names are in the metadata of the schema, where `datasets` writes them.
"""

from __future__ import annotations

import json
import math
import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import parquet

from nas.data.sources.base import (
    Sample,
    Source,
    Split,
    place_in,
    printable_line,
    split_from_path,
)
from nas.errors import DataError, first_line
from nas.files.foreign import file_problem

_ROWS_PER_BATCH = 16
"""Rows that are in memory at a time: few, because one may hold a photo of many megabytes."""

_READ_OPTIONS = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
"""Columns are read part by part instead of whole row groups, and page checksums are verified."""

_READ_ERRORS = (pa.ArrowException, OSError, ValueError, OverflowError)
"""The exceptions that pyarrow raises for a damaged file."""

_REPLACE_FILE = "Make the file readable, replace it, or move it away."


@dataclass(frozen=True)
class _Footer:
    """What the footer of a parquet file states, validated.

    Attributes:
        path: Path of the file.
        split: Split of its rows.
        rows: Number of rows.
        label_kind: What the column label holds.
        classes: Class names by label; None if the file has none.
        group: Name of the column with the groups; empty for none.
    """

    path: Path
    split: Split
    rows: int
    label_kind: Literal["integers", "strings"]
    classes: tuple[str, ...] | None
    group: str = ""


def open_parquet(root: Path, files: list[Path], group: str = "") -> Source:
    """Return the source of a parquet file, or of all parquet files in a folder.

    Args:
        root: The file or folder that was opened.
        files: The parquet files, `[root]` for a single file. Names of files and folders below
            `root` tell the splits; without such names all rows are training images.
        group: Name of the column that says what an image shows; empty for none.

    Raises:
        DataError: A file is damaged, empty or lacks the expected columns, or the files disagree.
    """
    splits = [
        split_from_path(file.relative_to(root) if file != root else Path(file.name))
        for file in files
    ]
    if any(splits) and None in splits:
        raise DataError(
            f"{printable_line(files[splits.index(None)])} has no split in its name, but other "
            "files have.",
            remedy="Put train, validation or test into the name, or move the file away.",
        )
    footers = [
        _read_footer(file, split or "train", group)
        for file, split in zip(files, splits, strict=True)
    ]
    first = footers[0]
    for footer in footers[1:]:
        if (footer.label_kind, footer.classes) != (first.label_kind, first.classes):
            raise DataError(
                f"The column label of {printable_line(footer.path)} has another type or other "
                f"class names than that of {printable_line(first.path)}.",
                remedy="Write all files with the same type and the same class names.",
            )
    return Source(
        printable_line(root),
        (sample for footer in footers for sample in _read_samples(root, footer)),
        sum(footer.rows for footer in footers),
        first.classes,
        root=root,
        files=tuple(files),
        labelling=repr([(footer.split, footer.group) for footer in footers]),
        layout="splits by file name" if any(splits) else "",
    )


@contextmanager
def _opened(file: Path, **options: Any) -> Iterator[parquet.ParquetFile]:
    """Yield a parquet file. pyarrow takes the name as bytes, since it need not be UTF-8."""
    with pa.OSFile(os.fsencode(file)) as content, parquet.ParquetFile(content, **options) as opened:
        yield opened


def _read_footer(file: Path, split: Split, group: str) -> _Footer:
    """Read and validate the footer of a file. Raises DataError if the file cannot be used."""
    if problem := file_problem(file):
        raise DataError(
            f"{printable_line(file)} is not a readable parquet file: {problem}.",
            remedy=_REPLACE_FILE,
        )
    try:
        with _opened(file) as opened:
            rows, schema = opened.metadata.num_rows, opened.schema_arrow
            if rows < 1:
                raise DataError(f"{printable_line(file)} has no rows.", remedy="Remove the file.")
            label_kind = _validate_columns(file, schema)
            if group and group not in schema.names:
                raise DataError(
                    f"{printable_line(file)} has no column {printable_line(group)} for the groups; "
                    f"it has {', '.join(map(printable_line, sorted(schema.names)))[:300]}.",
                    remedy="Correct group in [data].",
                )
            return _Footer(
                file,
                split,
                rows,
                label_kind,
                _read_class_names(file, schema, label_kind),
                group,
            )
    except _READ_ERRORS as error:
        raise DataError(
            f"{printable_line(file)} is not a readable parquet file: {first_line(error)}.",
            remedy=_REPLACE_FILE,
        ) from error


def _validate_columns(file: Path, schema: pa.Schema) -> Literal["integers", "strings"]:
    """Return what the column label holds. Raises DataError if a column cannot be used."""
    missing = [name for name in ("image", "label") if name not in schema.names]
    if missing:
        raise DataError(
            f"{printable_line(file)} has no column {' and no column '.join(missing)}; "
            f"it has {', '.join(printable_line(name) for name in sorted(schema.names))[:300]}.",
            remedy="Rename the columns with the images and the classes to image and label.",
        )
    for name in ("image", "label"):
        if schema.names.count(name) > 1:
            raise DataError(
                f"{printable_line(file)} has {schema.names.count(name)} columns {name}.",
                remedy="Rename or remove the others.",
            )
    image, label = schema.field("image").type, _value_type(schema.field("label").type)
    if not _can_hold_images(image):
        raise DataError(
            f"The column image of {printable_line(file)} holds {_type_name(image)}; expected "
            "binary, or a struct of bytes (binary) and path (string).",
            remedy="Store each image as the content of a PNG or JPEG file.",
        )
    if pa.types.is_integer(label):
        return "integers"
    if _is_string(label):
        return "strings"
    raise DataError(
        f"The column label of {printable_line(file)} holds {_type_name(label)}; expected integers "
        "or strings.",
        remedy="Store the class of each image as an integer or a name.",
    )


def _can_hold_images(column: pa.DataType) -> bool:
    if not pa.types.is_struct(column):
        return _is_binary(_value_type(column))
    fields = [(f.name, _value_type(f.type)) for f in column if f.name in ("bytes", "path")]
    usable = [
        pa.types.is_null(kind) or (_is_binary(kind) if name == "bytes" else _is_string(kind))
        for name, kind in fields
    ]
    return bool(usable) and all(usable) and len(fields) == len(dict(fields))


def _value_type(column: pa.DataType) -> pa.DataType:
    return column.value_type if pa.types.is_dictionary(column) else column


def _is_binary(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _is_string(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _type_name(kind: pa.DataType) -> str:
    return printable_line(str(kind))[:100]


def _read_class_names(file: Path, schema: pa.Schema, label_kind: str) -> tuple[str, ...] | None:
    """Return the names of a `ClassLabel` feature of `datasets`; None if the label is not one.

    Raises:
        DataError: The class names cannot be used.
    """
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        label = json.loads(text).get("info", {}).get("features", {}).get("label", {})
        if label.get("_type") != "ClassLabel":
            return None
        names = label["names"]
        valid = isinstance(names, list) and all(isinstance(name, str) for name in names)
        if not valid or len(set(names)) != len(names):
            raise ValueError("they are not a list of different strings")
        if label_kind != "integers":
            raise ValueError(f"the column holds {label_kind}, not positions among the names")
    except (ValueError, AttributeError, KeyError, RecursionError) as error:
        raise DataError(
            f"The class names of the column label in {printable_line(file)} cannot be used "
            f"(metadata huggingface: {first_line(error)}).",
            remedy="Write the file again, or remove this metadata.",
        ) from error
    return tuple(unicodedata.normalize("NFC", name) for name in names)


def _read_samples(root: Path, footer: _Footer) -> Iterator[Sample]:
    """Yield a sample for each row; the image or label of a sample is None if the row has none.

    Args:
        root: The file or folder that was opened.
        footer: What is known of the file.

    Raises:
        DataError: The file is damaged or ends early.
    """
    row = 0
    try:
        with _opened(footer.path, **_READ_OPTIONS) as opened:
            columns = ["image", "label", *([footer.group] if footer.group else [])]
            for batch in opened.iter_batches(_ROWS_PER_BATCH, columns=columns):
                images, labels, *groups = (batch.column(name).to_pylist() for name in columns)
                own = groups[0] if groups else [None] * len(images)
                for image, label, group in zip(images, labels, own, strict=True):
                    location = f"{place_in(root, footer.path)}, row {row}"
                    content = _image_content(footer, image)
                    if isinstance(content, Path):
                        location = f"{location}: {place_in(footer.path.parent, content)}"
                    yield Sample(footer.split, location, content, label, _group_name(group))
                    row += 1
    except _READ_ERRORS as error:
        raise DataError(
            f"{printable_line(footer.path)} cannot be read from row {row} on: {first_line(error)}.",
            remedy=_REPLACE_FILE,
        ) from error
    if row != footer.rows:
        raise DataError(
            f"{printable_line(footer.path)} ends after {row} rows; its footer states "
            f"{footer.rows}.",
            remedy=_REPLACE_FILE,
        )


def _image_content(footer: _Footer, image: Any) -> bytes | Path | None:
    """Return the content or path of an image, given a value of the column image."""
    if not isinstance(image, dict):
        return image
    content, path = image.get("bytes"), image.get("path")
    return footer.path.parent / path if content is None and path else content


def _group_name(value: Any) -> str | None:
    """Return a group as text that is the same whatever type its column has.

    A column of integers in which some are missing is often one of floating-point numbers: pandas
    has no other missing value for them than NaN.
    """
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    return None if value is None else unicodedata.normalize("NFC", str(value))
