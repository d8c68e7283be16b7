"""Parquet files: a column of any type is read correctly or named in an error."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nas.data import load_dataset
from nas.data.sources import open_source
from nas.errors import DataError
from tests.data.folders import class_label, plain, write_parquet


def rows(source) -> list[tuple]:
    return [(sample.image, sample.label) for sample in source.samples]


IMAGES = [plain(value) for value in range(12)]
LABELS = [0, 1] * 6


def test_name_of_file_or_folder_may_be_no_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    (folder / "data.parquet").write_bytes(
        Path(__file__).with_name("hugging_face.parquet").read_bytes()
    )
    for path in (folder, folder / "data.parquet"):
        source = open_source(path)
        assert len(rows(source)) == source.count > 0


def test_file_written_by_hugging_face_datasets_is_read():
    """`Dataset.from_dict(rows, features=...).to_parquet(...)` of `datasets` 5.2.0 wrote the file.

    The file has the grey values 0 to 7 with the labels 0 and 1 in turn, and a row without an image.
    """
    source = open_source(Path(__file__).with_name("hugging_face.parquet"))
    assert (source.classes, source.count) == (("ant", "bee"), 9)
    samples = list(source.samples)
    values = [np.asarray(Image.open(io.BytesIO(sample.image)))[0, 0] for sample in samples[:8]]
    assert values == list(range(8))
    assert [sample.label for sample in samples] == [0, 1] * 4 + [1]
    assert samples[8].location.endswith("hugging_face.parquet, row 8")


WORDS = pa.array(["01"[label] for label in LABELS])


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (pa.array(IMAGES), pa.array(LABELS, pa.uint8())),
        (pa.array(IMAGES, pa.large_binary()), WORDS),
        (pa.array(IMAGES).dictionary_encode(), WORDS.cast(pa.large_string())),
        (pa.array([{"bytes": image} for image in IMAGES]), WORDS.dictionary_encode()),
        (pa.array([{"path": None, "bytes": image, "size": 1} for image in IMAGES]), WORDS),
    ],
    ids=lambda array: str(array.type)[:30],
)
def test_image_and_label_columns_of_every_supported_type_are_read(tmp_path, images, labels):
    path = write_parquet(tmp_path / "a.parquet", images, labels, row_group_size=5)
    assert rows(open_source(path)) == list(zip(IMAGES, labels.to_pylist(), strict=True))
    assert load_dataset(path).classes == ("0", "1")


@pytest.mark.parametrize(
    ("column", "values", "holds"),
    [
        ("image", pa.array(range(12)), "int64"),
        ("image", pa.array(["a.png"] * 12), "string"),
        ("image", pa.array([{"size": 1}] * 12), "struct<size: int64>"),
        ("image", pa.array([{"bytes": "text"}] * 12), "struct<bytes: string>"),
        ("image", pa.array([{"bytes": b"", "path": 1}] * 12), "struct<bytes: binary, path: int64>"),
        ("label", pa.array([0.0, 1.0] * 6), "double"),
        ("label", pa.array([None] * 12), "null"),
        ("label", pa.array([True, False] * 6), "bool"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_column_of_another_type_is_an_error(tmp_path, column, values, holds):
    columns = {"image": IMAGES, "label": LABELS, column: values}
    path = write_parquet(tmp_path / "a.parquet", columns["image"], columns["label"])
    with pytest.raises(DataError) as caught:
        load_dataset(path)
    assert f"The column {column} of {path} holds {holds}" in str(caught.value)
    expected = {"image": "expected binary", "label": "expected integers or strings"}
    assert expected[column] in str(caught.value)


@pytest.mark.parametrize("label", [2, -2, 2**64 - 1])
def test_label_without_class_name_is_an_error(tmp_path, label):
    kind = pa.uint64() if label > 2 else pa.int64()
    labels = pa.array([0, 1] * 5 + [0, label], kind)
    path = write_parquet(tmp_path / "a.parquet", IMAGES, labels, class_label(["ant", "bee"]))
    with pytest.raises(DataError, match=rf"a\.parquet has label {label}, but only 2 class names"):
        load_dataset(path)


@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        ("{", LABELS),
        ("[]", LABELS),
        ('{"info": []}', LABELS),
        ('{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', LABELS),
        (class_label("ab"), LABELS),
        (class_label(["ant", "ant"]), LABELS),
        (class_label(["ant", "bee"]), ["a", "b"] * 6),
    ],
    ids=range(7),
)
def test_invalid_class_name_metadata_is_an_error(tmp_path, metadata, labels):
    path = write_parquet(tmp_path / "a.parquet", IMAGES, labels, metadata)
    with pytest.raises(DataError, match=r"class names of the column label in .*a\.parquet"):
        load_dataset(path)


@pytest.mark.parametrize("other", [class_label(["bee", "ant"]), None])
def test_files_with_different_class_names_are_an_error(tmp_path, other):
    write_parquet(tmp_path / "train.parquet", IMAGES, LABELS, class_label(["ant", "bee"]))
    write_parquet(tmp_path / "test.parquet", IMAGES, LABELS, other)
    with pytest.raises(DataError, match=r"train\.parquet has another type or other class names"):
        load_dataset(tmp_path)


def test_duplicate_column_is_an_error(tmp_path):
    table = pa.Table.from_arrays(
        [pa.array(IMAGES)] * 2 + [pa.array(LABELS)], ["image"] * 2 + ["label"]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has 2 columns image"):
        load_dataset(tmp_path)


def test_truncated_file_is_an_error(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", IMAGES, LABELS)
    content = path.read_bytes()
    for size in (0, 3, 100):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"a\.parquet is not a readable parquet file"):
            load_dataset(path)


def test_damaged_page_is_an_error_with_the_row(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", IMAGES, LABELS, compression="zstd")
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 400 + content[404:])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read from row 0 on"):
        load_dataset(path)


def test_damaged_label_is_detected_by_the_page_checksum(tmp_path):
    options = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    labels = [2**40 + label for label in LABELS]
    path = write_parquet(tmp_path / "a.parquet", IMAGES, labels, **options)
    content = path.read_bytes()
    at = content.index(b"".join(label.to_bytes(8, "little") for label in labels))
    path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(DataError, match=r"a\.parquet cannot be read from row 0 on: .*CRC"):
        load_dataset(path)


def test_missing_row_group_is_an_error(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", IMAGES, LABELS, row_group_size=4)
    real = pq.ParquetFile.iter_batches

    def first_two(file, *rest, **options):
        return real(file, *rest, row_groups=[0, 1], **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", first_two)
    with pytest.raises(DataError, match=r"a\.parquet ends after 8 rows; its footer states 12"):
        load_dataset(path)


@pytest.mark.parametrize("kind", ["dangling", "pipe", "folder"])
def test_parquet_name_of_a_link_pipe_or_folder_is_an_error(tmp_path, kind):
    write_parquet(tmp_path / "train-0.parquet", IMAGES, LABELS)
    other = tmp_path / "train-1.parquet"
    if kind == "dangling":
        other.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(other)
    else:
        other.mkdir()
        (other / "part-0.PARQUET").write_bytes(b"")
    with pytest.raises(DataError, match=r"train-1\.parquet.* is not a readable parquet file"):
        load_dataset(tmp_path)


def images_by_path(folder: Path, **options) -> Path:
    folder.mkdir()
    for index, image in enumerate(IMAGES):
        (folder / f"{index}.png").write_bytes(image)
    images = [{"bytes": None, "path": f"{index}.png"} for index in range(12)]
    return write_parquet(folder / "a.parquet", images, LABELS, **options)


def red(data) -> list[int]:
    parts = (data.train, data.search, data.holdout, data.test)
    return sorted(value for part in parts for value in part.pixels[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("statistics", [True, False])
def test_image_files_named_by_rows_are_decoded_again_after_a_change(
    tmp_path, empty_cache, statistics
):
    path = images_by_path(tmp_path / "photos", write_statistics=statistics)
    assert red(load_dataset(path, image_size=2)) == list(range(12))
    (path.parent / "3.png").write_bytes(plain(200))
    os.utime(path.parent / "3.png", ns=(1, 1))
    assert red(load_dataset(path, image_size=2)) == [0, 1, 2, *range(4, 12), 200]
    (path.parent / "4.png").unlink()
    with pytest.raises(DataError, match=r"row 4: 4\.png \(.*No such file"):
        load_dataset(path, image_size=2)
    (path.parent / "4.png").write_bytes(IMAGES[4])
    assert len(red(load_dataset(path, image_size=2))) == 12


def test_rows_with_an_invalid_path_are_bad_images(tmp_path, empty_cache):
    images = [{"bytes": image, "path": None} for image in IMAGES]
    paths = ["a\0b.png", "x" * 5000, "", "https://example.org/a.png", "."]
    images[3:8] = [{"bytes": None, "path": path} for path in paths]
    with pytest.raises(DataError, match=r"5 of 12 images of .* cannot be used: .*row 3"):
        load_dataset(write_parquet(tmp_path / "a.parquet", images, LABELS))


def test_row_group_is_read_in_parts(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.bytes(50_000) for _ in range(600)]
    path = tmp_path / "a.parquet"
    write_parquet(path, images, [0, 1] * 300, write_batch_size=16, use_dictionary=False)
    del images
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in open_source(path).samples)
    assert path.stat().st_size > 30e6
    assert 0 < peak < 15e6


def test_groups_are_the_same_whatever_type_their_column_has(tmp_path):
    """Pandas makes a column of floating-point numbers of integers of which one is missing."""
    columns = {
        "integers": pa.array([1, 2, None], pa.int64()),
        "floats": pa.array([1.0, 2.0, float("nan")], pa.float64()),
        "texts": pa.array(["1", "2", None]),
    }
    for name, column in columns.items():
        table = pa.table({"image": [plain(1)] * 3, "label": [0, 1, 0], "patient": column})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        source = open_source(tmp_path / f"{name}.parquet", group="patient")
        assert [sample.group for sample in source.samples] == ["1", "2", None], name
    table = pa.table({"image": [plain(1)], "label": [0], "patient": ["Zoe\u0308 1.5"]})
    pq.write_table(table, tmp_path / "accent.parquet")
    (sample,) = open_source(tmp_path / "accent.parquet", group="patient").samples
    assert sample.group == "Zo\xeb 1.5"
