"""Reads images from parquet files in the Hugging Face layout: one row is one image.

The column `image` holds the encoded image, or a struct of `bytes` and `path`; the path is relative
to the parquet file and counts only where there are no bytes. The column `label` holds integers or
strings. The names of the classes are in the schema's metadata, where `datasets` writes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pyarrow import parquet

from nas.data.sources.base import Sample, Source, Split, shown, split_named_in
from nas.errors import DataError, first_line

_ROWS_PER_BATCH = 16

_READ_OPTIONS = {"buffer_size": 1 << 20, "pre_buffer": False, "page_checksum_verification": True}
"""Read a column some bytes at a time, not a whole row group, and verify checksums if there are."""

_UNREADABLE = (pa.ArrowException, OSError, ValueError, OverflowError)
"""What pyarrow raises for a damaged file."""

_REPLACE = "Make the file readable, replace it or remove it."


@dataclass(frozen=True)
class _Table:
    """What the footer of a parquet file states, validated.

    Attributes:
        path: of the file.
        split: of its rows.
        rows: how many there are.
        label_kind: what the column label holds.
        classes: names by label; None where the file has none.
    """

    path: Path
    split: Split
    rows: int
    label_kind: Literal["integers", "strings"]
    classes: tuple[str, ...] | None


def open_parquet(root: Path, files: list[Path]) -> Source:
    """Return the source of a parquet file, or of those in a folder; their names tell the splits.

    Raises DataError for a file that is damaged, empty, or has other columns than expected.
    """
    splits = [
        split_named_in(file.relative_to(root) if file != root else Path(file.name))
        for file in files
    ]
    if any(splits) and None in splits:
        raise DataError(
            f"{shown(files[splits.index(None)])} has no split in its name, but other files have.",
            remedy="Put train, validation or test into the name, or move the file away.",
        )
    tables = [
        _read_footer(file, split or "train") for file, split in zip(files, splits, strict=True)
    ]
    first = tables[0]
    for table in tables[1:]:
        if (table.label_kind, table.classes) != (first.label_kind, first.classes):
            raise DataError(
                f"The column label of {shown(table.path)} has another type or other class names "
                f"than that of {shown(first.path)}.",
                remedy="Write all files with the same type and the same class names.",
            )
    return Source(
        shown(root),
        (sample for table in tables for sample in _samples(table)),
        sum(table.rows for table in tables),
        first.classes,
        root=root,
        files=tuple(files),
    )


def _read_footer(file: Path, split: Split) -> _Table:
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no regular file")  # Opening a pipe would wait for ever.
        with parquet.ParquetFile(file) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
            in_groups = sum(
                metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)
            )
            if metadata.num_rows != in_groups:
                raise DataError(
                    f"{shown(file)} is damaged: its footer states {metadata.num_rows} rows, its "
                    f"row groups {in_groups}.",
                    remedy=_REPLACE,
                )
            if metadata.num_rows < 1:
                raise DataError(f"{shown(file)} has no rows.", remedy="Remove the file.")
            label_kind = _validate_columns(file, schema)
            return _Table(
                file,
                split,
                metadata.num_rows,
                label_kind,
                _class_names(file, schema, label_kind),
            )
    except _UNREADABLE as error:
        raise DataError(
            f"{shown(file)} is no readable parquet: {first_line(error)}.", remedy=_REPLACE
        ) from error


def _validate_columns(file: Path, schema: pa.Schema) -> Literal["integers", "strings"]:
    """Return what the column label holds. Raises DataError for columns that cannot be used."""
    missing = [name for name in ("image", "label") if name not in schema.names]
    if missing:
        raise DataError(
            f"{shown(file)} has no column {' and no column '.join(missing)}; "
            f"it has {', '.join(shown(name) for name in sorted(schema.names))[:300]}.",
            remedy="Rename the columns with the images and the classes to image and label.",
        )
    for name in ("image", "label"):
        if schema.names.count(name) > 1:
            raise DataError(
                f"{shown(file)} has {schema.names.count(name)} columns {name}.",
                remedy="Rename or remove the others.",
            )
    image, label = schema.field("image").type, _value_type(schema.field("label").type)
    if not _holds_images(image):
        raise DataError(
            f"The column image of {shown(file)} holds {_name_of(image)}; expected binary, or a "
            "struct of bytes (binary) and path (string).",
            remedy="Store each image as the content of a PNG or JPEG file.",
        )
    if pa.types.is_integer(label):
        return "integers"
    if _is_string(label):
        return "strings"
    raise DataError(
        f"The column label of {shown(file)} holds {_name_of(label)}; expected integers or strings.",
        remedy="Store the class of each image as an integer or a name.",
    )


def _holds_images(column: pa.DataType) -> bool:
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


def _name_of(kind: pa.DataType) -> str:
    return shown(str(kind))[:100]


def _class_names(file: Path, schema: pa.Schema, label_kind: str) -> tuple[str, ...] | None:
    """Return the names of a `ClassLabel` of the library `datasets`; None for another label."""
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
            f"The class names of the column label in {shown(file)} cannot be used (metadata "
            f"huggingface: {first_line(error)}).",
            remedy="Write the file again, or remove this metadata.",
        ) from error
    return tuple(names)


def _samples(table: _Table) -> Iterator[Sample]:
    """Yield every row; one that holds no image or no label has None there.

    Raises DataError for a label without a class name, and a file that ends early.
    """
    row = 0
    try:
        with parquet.ParquetFile(table.path, **_READ_OPTIONS) as opened:
            for batch in opened.iter_batches(_ROWS_PER_BATCH, columns=["image", "label"]):
                images, labels = (batch.column(name).to_pylist() for name in ("image", "label"))
                for image, label in zip(images, labels, strict=True):
                    place, content = f"{shown(table.path)}, row {row}", _content(table, image)
                    if isinstance(content, Path):
                        place = f"{place}: {shown(content)}"
                    yield Sample(table.split, place, content, _label(table, label))
                    row += 1
    except _UNREADABLE as error:
        raise DataError(
            f"{shown(table.path)} breaks off at row {row}: {first_line(error)}.", remedy=_REPLACE
        ) from error
    if row != table.rows:
        raise DataError(
            f"{shown(table.path)} ends after {row} rows; its footer states {table.rows}.",
            remedy=_REPLACE,
        )


def _content(table: _Table, image: Any) -> bytes | Path | None:
    if not isinstance(image, dict):
        return image
    content, path = image.get("bytes"), image.get("path")
    return table.path.parent / path if content is None and path else content


def _label(table: _Table, label: Any) -> int | str | None:
    if table.classes is not None and label is not None and not -1 <= label < len(table.classes):
        raise DataError(
            f"The column label of {shown(table.path)} has the value {label}, but there are only "
            f"{len(table.classes)} class names.",
            remedy="Correct the labels or the names.",
        )
    return label
