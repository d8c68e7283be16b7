"""What is no part of the data is left out of a folder, at any depth and without a warning."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from PIL import Image

from nas.data.sources import open_source
from nas.data.sources.tree import list_tree
from nas.errors import DataError


@pytest.fixture
def photos(tmp_path) -> Path:
    for name in ("ant", "bee"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(3):
            add_image(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def add_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path, "PNG")


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


JUNK = (
    "@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
    "__MACOSX/._1.png",
    "__MACOSX/bee/1.png",
    "$RECYCLE.BIN/S-1-5/1.png",
    "System Volume Information/1.png",
    ".git/1.png",
    "._1.png",
    "Thumbs.db",
)


@pytest.mark.parametrize("where", ["", "bee/", "train/", "train/bee/"])
def test_junk_is_left_out_without_a_warning(photos, where):
    if where.startswith("train"):
        photos.rename(photos.parent / "all")
        photos.mkdir()
        (photos.parent / "all").rename(photos / "train")
    for name in JUNK:
        add_image(photos / where / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = open_source(photos)
    assert (source.count, source.classes) == (6, ("ant", "bee"))


@pytest.mark.parametrize(
    "names",
    [
        ("job.toml", "run.json", "report.html", "front.png"),
        ("job.toml", ".lock"),
        ("card.json", "preprocessing.json", "model.onnx"),
    ],
)
@pytest.mark.parametrize("folder", ["results/mine", "mine"])
def test_folders_of_this_project_are_left_out(photos, names, folder):
    """A job with `source = "."` writes its results beside the classes."""
    for name in names:
        write(photos / folder / name)
    write(photos / "results" / "README.md")
    if folder == "mine":
        (photos / "results" / "README.md").unlink()
        (photos / "results").rmdir()
    write(photos / "latency_tables" / "README.md")
    write(
        photos / "latency_tables" / "my-processor.jsonl",
        '{"schema": 1, "record": "header", "processor": "mine"}\n',
    )
    assert open_source(photos).count == 6


def test_table_that_this_project_wrote_is_recognised(tmp_path):
    """The first line of a table that ships, not one that the test made up."""
    shipped = Path(__file__).parents[3] / "latency_tables"
    folders, files = list_tree(tmp_path)
    for table in shipped.glob("*.jsonl"):
        with table.open() as file:
            write(tmp_path / "tables" / table.name, file.readline())
    assert list_tree(tmp_path) == (folders, files) == ([], [])


def test_folder_with_images_beside_a_job_file_is_data(tmp_path):
    """Only a folder with a run is one of this project; the job file of a user is not."""
    write(tmp_path / "photos" / "job.toml")
    for name in ("ant", "bee"):
        add_image(tmp_path / "photos" / name / "1.png")
    with pytest.warns(UserWarning, match="ignored"):
        assert open_source(tmp_path).classes == ("ant", "bee")


def test_folder_of_results_that_has_images_is_a_class(photos):
    write(photos / "results" / "mine" / "job.toml")
    write(photos / "results" / "mine" / "run.json")
    add_image(photos / "results" / "mine" / "plot.png")
    add_image(photos / "results" / "1.png")
    assert open_source(photos).classes == ("ant", "bee", "results")
    assert open_source(photos).count == 7


def test_folder_without_data_is_an_error(tmp_path):
    add_image(tmp_path / "@eaDir" / "1.png")
    with pytest.raises(DataError, match="no images"):
        open_source(tmp_path)
