"""Image folders: anything ignored that may be a class or an image gives an error or a warning."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
from PIL import Image

from nas.data import load_dataset
from nas.data.sources import open_source
from nas.errors import DataError


@pytest.fixture
def photos(tmp_path) -> Path:
    """Return a folder of three classes with six images each."""
    for shade, name in enumerate(("ant", "bee", "cow")):
        add_images(tmp_path / "photos" / name, 6, shade)
    return tmp_path / "photos"


def add_images(folder: Path, count: int, shade: int = 0) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        Image.new("L", (4, 4), 50 * shade + index).save(folder / f"{index}.png")


def labels_by_file(source) -> dict[str, str]:
    root = str(source.root)
    return {
        os.path.relpath(sample.location, root): source.classes[sample.label]
        for sample in source.samples
    }


def forbid_listing(monkeypatch, folder: Path) -> None:
    """Make listing a folder fail; permissions would not stop root."""
    real = os.scandir

    def scandir(path):
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.parametrize("part", [".", "bee", "bee/deeper"])
def test_unlistable_folder_is_named_in_the_error(photos, monkeypatch, part):
    add_images(photos / "bee" / "deeper", 1)
    forbid_listing(monkeypatch, photos / part)
    with pytest.raises(DataError) as caught:
        load_dataset(photos, on_bad_image="skip")
    assert f"The folder {photos / part} cannot be listed (Permission denied)" in str(caught.value)


def test_unlistable_parquet_folder_is_named_in_the_error(tmp_path, monkeypatch):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "train" / "0.parquet").touch()
    forbid_listing(monkeypatch, tmp_path / "test")
    with pytest.raises(DataError, match=r"/test cannot be listed \(Permission denied\)"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("content", [None, "notes.txt", "photo.heic"])
def test_class_folder_without_images_is_named_in_the_error(photos, content):
    (photos / "dog").mkdir()
    if content:
        (photos / "dog" / content).write_text("no image")
    with pytest.raises(DataError, match=r"class folder .*/dog has no image.*\.png.*remove the"):
        load_dataset(photos)


def test_class_folder_may_be_empty_in_one_split(tmp_path):
    for name in ("ant", "bee"):
        add_images(tmp_path / "train" / name, 6)
    add_images(tmp_path / "test" / "ant", 2)
    (tmp_path / "test" / "bee").mkdir()
    assert load_dataset(tmp_path).counts["test"] == 2


@pytest.mark.parametrize("target", ["nowhere", "bee"])
def test_broken_link_where_a_class_may_stand_is_an_error(photos, target):
    (photos / "dog").symlink_to("nowhere" if target == "nowhere" else "dog")
    with pytest.raises(DataError, match=r"/dog is a broken link"):
        load_dataset(photos)


def test_links_to_folders_are_followed(photos, tmp_path):
    add_images(tmp_path / "elsewhere", 2)
    (photos / "dog").symlink_to(tmp_path / "elsewhere")
    (photos / "bee" / "more").symlink_to(tmp_path / "elsewhere")
    files = labels_by_file(open_source(photos))
    assert files["dog/0.png"] == "dog"
    assert files["bee/more/1.png"] == "bee"
    assert len(files) == 18 + 4


@pytest.mark.parametrize("target", [".", "bee"])
def test_link_loop_is_an_error(photos, target):
    (photos / "bee" / "loop").symlink_to(photos / target)
    with pytest.raises(DataError, match=r"/loop is a link to a folder that was listed before"):
        open_source(photos)


def test_links_with_exponentially_many_paths_are_refused(photos):
    """Each of 40 folders has two links to the next, which makes 2 to the power of 40 paths."""
    chain = photos / "bee" / "chain"
    for index in range(40):
        (chain / str(index)).mkdir(parents=True)
        for name in "ab":
            (chain / str(index) / name).symlink_to(f"../{index + 1}")
    with pytest.raises(DataError, match="listed before"):
        open_source(photos)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("dangling", "extra.png"),
        ("dangling", "extra"),
        ("loop", "extra.png"),
        ("loop", "extra"),
        ("folder gone", "extra"),
        ("pipe", "extra.png"),
    ],
)
def test_broken_link_or_pipe_is_a_bad_image(photos, kind, name):
    extra = photos / "bee" / name
    if kind == "dangling":
        extra.symlink_to("nowhere.png")
    elif kind == "loop":
        extra.symlink_to(name)
    elif kind == "folder gone":
        extra.symlink_to("gone/image.png")
    else:
        os.mkfifo(extra)
    with pytest.raises(DataError, match=rf"1 of 19 images cannot be used: .*/bee/{name} \("):
        load_dataset(photos)
    (skipped,) = load_dataset(photos, on_bad_image="skip").skipped
    assert f"/bee/{name} (" in skipped


def test_image_without_read_permission_is_a_bad_image(photos, monkeypatch):
    real = Image.open

    def denied(file, *rest, **options):
        if Path(file).name == "3.png" and Path(file).parent.name == "bee":
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *rest, **options)

    monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(DataError, match=r"/bee/3\.png \(Permission denied\)"):
        load_dataset(photos)


def test_ignored_files_are_reported_in_a_warning(photos):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source(photos)
    (photos / "bee" / "notes.txt").write_text("hello")
    (photos / "loose.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"2 files in .* are ignored.*bee/notes\.txt, loose\.png"):
        assert open_source(photos).count == 18


def test_folders_beside_splits_are_reported_in_a_warning(photos, tmp_path):
    photos.rename(tmp_path / "train")
    add_images(tmp_path / "unlabelled", 1)
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match=r"1 files in .* are ignored.*unlabelled/0\.png"):
        assert open_source(tmp_path).classes == ("ant", "bee", "cow")


def test_class_may_be_called_train(photos):
    (photos / "ant").rename(photos / "train")
    assert open_source(photos).classes == ("bee", "cow", "train")


def test_split_folders_without_class_folders_are_an_error(tmp_path):
    add_images(tmp_path / "train", 6)
    add_images(tmp_path / "test", 6)
    with pytest.raises(DataError, match="the split folders test, train only"):
        load_dataset(tmp_path)


def test_split_folders_without_train_are_an_error(tmp_path):
    for split in ("val", "test"):
        add_images(tmp_path / split / "ant", 6)
    with pytest.raises(DataError, match="no folder train"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["photo.JPG", "photo.Jpeg", "photo.PNG", "photo.tiff"])
def test_image_extensions_match_in_any_case(photos, name):
    Image.new("L", (4, 4)).save(photos / "bee" / name)
    assert open_source(photos).count == 19
