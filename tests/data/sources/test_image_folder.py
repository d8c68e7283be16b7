"""Image folders: anything ignored that may be a class or an image gives an error or a warning."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

import pytest

from nas.data import load_dataset
from nas.data.sources import open_source
from nas.data.sources.image_folder import open_image_folder
from nas.data.sources.tree import list_tree
from nas.errors import DataError
from tests.data.folders import add_classes, add_images


@pytest.fixture
def photos(tmp_path) -> Path:
    """Return a folder of three classes with six images each."""
    return add_classes(tmp_path / "photos")


def labels_by_file(source) -> dict[str, str]:
    return {sample.location: source.classes[sample.label] for sample in source.samples}


def splits_by_class(source) -> Counter[tuple[str, str]]:
    return Counter((sample.split, source.classes[sample.label]) for sample in source.samples)


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


ALL_WAYS = ("auto", "top", "lowest")


@pytest.mark.parametrize(
    ("images", "empty", "ways", "message"),
    [
        ("ant bee", "dog", ALL_WAYS, r"class folder .*/dog has no image.*\.png.*remove the"),
        ("animals/cats animals/dogs", "animals/mice", ["lowest"], "folder .*/animals/mice has no"),
        ("train/ant train/bee test/ant", "test/bee", ["auto"], "few test images: 'bee' has 0"),
        ("animals/cats animals/dogs animals plants/rose", "", ["auto"], "below animals, plants"),
        ("ant/a ant/b bee/a bee/b", "", ["auto"], '"top" for ant, bee'),
        ("ant/a ant/b bee/a bee/b", "", ["lowest"], "same name: ant/a and bee/a"),
        ("ant/train ant/test bee/train bee/test", "", ["auto", "top"],
         r"split folders \(test, train\) below .* ant, bee"),
        ("train test", "", ["auto"], "the split folders test, train only"),
        ("val/ant test/ant", "", ["auto"], "no folder train"),
        ("Train/ant Train/bee holdout/ant", "", ["auto"], "without a split in .*: holdout"),
        ("Train/ant Train/bee Test/ant Prüfung/ant", "", ["auto"], "in their names: Prüfung"),
    ],
)  # fmt: skip
def test_unclear_or_empty_folders_are_refused(tmp_path, images, empty, ways, message):
    for name in images.split():
        add_images(tmp_path / name, 6)
    (tmp_path / empty).mkdir(exist_ok=True)
    for way in ways:
        with pytest.raises(DataError, match=message):
            load_dataset(tmp_path, class_folders=way)


def test_class_folder_of_other_files_has_no_image(photos):
    (photos / "dog").mkdir()
    (photos / "dog" / "Thumbs.db").write_text("no image")
    (photos / "dog" / "movie.mov").write_text("no image")
    with pytest.raises(DataError, match=r"class folder .*/dog has no image"):
        load_dataset(photos)


@pytest.mark.parametrize("target", ["nowhere", "bee"])
def test_broken_link_where_a_class_may_stand_is_an_error(photos, target):
    (photos / "dog").symlink_to("nowhere" if target == "nowhere" else "dog")
    with pytest.raises(DataError, match=r"/dog is a broken link"):
        load_dataset(photos)


def undecoded(path: Path) -> Path:
    """Return a path as Python gives it where the locale does not read UTF-8."""
    return Path(os.fsencode(path).decode("ascii", "surrogateescape"))


def test_names_are_utf_8_whatever_the_locale(tmp_path):
    for name in ("b", "\u00e9t\u00e9", "e\u0301toile"):
        add_images(tmp_path / name, 6)
    folders, files = ([undecoded(each) for each in found] for found in list_tree(tmp_path))
    source = open_image_folder(undecoded(tmp_path), folders, files, group="/(..)")
    assert source.classes == ("b", "\u00e9toile", "\u00e9t\u00e9")
    with pytest.raises(DataError, match="matches no path"):
        open_image_folder(undecoded(tmp_path), folders, files, group="(\u00e8)")
    source = open_image_folder(undecoded(tmp_path), folders, files, group="^([e\u0301])t")
    assert [sample.group for sample in source.samples] == [None] * 6 + ["\u00e9"] * 12


@pytest.mark.parametrize("group", ["", r"/(.+)\.png"])
def test_folders_and_files_may_have_names_that_are_no_utf_8(photos, empty_cache, group):
    folder = photos.with_name(os.fsdecode(b"ph\xffotos"))
    photos.rename(folder)
    (folder / "bee" / "1.png").rename(folder / "bee" / os.fsdecode(b"\xff.png"))
    for _ in range(2):  # The second one is read from the cache.
        data = load_dataset(folder, image_size=8, group=group)
        assert data.source.endswith(r"/ph\udcffotos")
        assert sum(r"\udcff.png" in place for place in data.inventory.locations) == 1


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
    with pytest.raises(DataError, match=r"/loop is a link to a folder that it is in"):
        open_source(photos)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("dangling", "extra.png"),
        ("dangling", "extra"),
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
    with pytest.raises(DataError, match=rf"1 of 19 images of .* cannot be used: .* bee/{name} \("):
        load_dataset(photos)
    (skipped,) = load_dataset(photos, on_bad_image="skip").skipped
    assert skipped.startswith(f"bee/{name} (")


def test_ignored_files_are_reported_in_a_warning(photos):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source(photos)
    (photos / "bee" / "notes.txt").write_text("hello")
    (photos / "loose.png").write_bytes(b"")
    with (
        pytest.warns(UserWarning, match=r"1 files in .* are ignored.*: bee/notes\.txt\."),
        pytest.warns(UserWarning, match=r"1 images in .* are left out.*no class.*: loose\.png\."),
    ):
        assert open_source(photos).count == 18


def test_split_folders_have_many_names(tmp_path):
    for split, count in (("training-data", 6), ("TestData", 2)):
        for name in ("ant", "bee"):
            add_images(tmp_path / split / name, count)
    source = open_source(tmp_path)
    assert source.classes == ("ant", "bee")
    assert splits_by_class(source) == {
        ("train", "ant"): 6, ("train", "bee"): 6, ("test", "ant"): 2, ("test", "bee"): 2
    }  # fmt: skip


def test_folders_beside_splits_are_reported_in_a_warning(photos, tmp_path):
    photos.rename(tmp_path / "train")
    for name in ("ant", "bee", "cow"):
        add_images(tmp_path / "test" / name, 2)
    add_images(tmp_path / "unlabelled", 1)
    (tmp_path / "empty").mkdir()
    with pytest.warns(UserWarning, match=r"1 images in .* are left out.*unlabelled/0\.png"):
        assert open_source(tmp_path).classes == ("ant", "bee", "cow")


def test_unlabelled_test_images_are_reported_in_a_warning(photos, tmp_path):
    photos.rename(tmp_path / "train")
    add_images(tmp_path / "test", 4)
    with pytest.warns(UserWarning, match=r"4 images in .* left out.*no class folder: test/0\.png"):
        source = open_source(tmp_path)
    assert {split for split, _ in splits_by_class(source)} == {"train"}
    assert source.layout == "splits by folder: train"


def test_folder_called_train_beside_classes_is_unclear(tmp_path):
    """Vehicles, of which the trains are sorted by kind; or a split beside unlabelled images."""
    for name in ("train/steam", "train/diesel", "bus", "car"):
        add_images(tmp_path / name, 6)
    with pytest.raises(DataError, match=r"folders train, .* beside others .*: bus, car\. .*rename"):
        open_source(tmp_path)
    (tmp_path / "train").rename(tmp_path / "trains")
    with pytest.raises(DataError, match="below trains, so it is not clear"):
        open_source(tmp_path)
    assert open_source(tmp_path, "top").classes == ("bus", "car", "trains")
    assert open_source(tmp_path, "lowest").classes == ("bus", "car", "diesel", "steam")


@pytest.mark.parametrize("split", ["", "train/"])
def test_topics_above_classes_are_refused_unless_the_key_says_which_are_classes(tmp_path, split):
    for name in ("animals/cats", "animals/dogs", "plants/rose", "plants/tulip"):
        add_images(tmp_path / split / name, 6)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path)
    message = str(caught.value)
    assert '"lowest" in [data] for the classes cats, dogs, rose, tulip' in message
    assert '"top" for animals, plants' in message
    assert splits_by_class(open_source(tmp_path, "lowest")) == {
        ("train", name): 6 for name in ("cats", "dogs", "rose", "tulip")
    }
    assert splits_by_class(open_source(tmp_path, "top")) == {
        ("train", name): 12 for name in ("animals", "plants")
    }


@pytest.mark.parametrize(
    "inside",
    [
        ("2024", "2025"),
        ("2024-05-01", "2024-05-02 garden"),
        ("20240501", "20240502"),
        ("01.05.2024", "2.5.2024"),
        ("100CANON", "101APPLE"),
        ("images", "2024/05"),
    ],
)
def test_images_sorted_by_date_belong_to_the_class_above(tmp_path, inside):
    for name in ("ant", "bee"):
        for folder in inside:
            add_images(tmp_path / name / folder, 3)
    for way in ALL_WAYS:
        classes = splits_by_class(open_source(tmp_path, way))
        assert classes == {("train", "ant"): 6, ("train", "bee"): 6}


def test_single_folder_that_holds_everything_stands_for_the_source(photos, tmp_path):
    (tmp_path / "zip").mkdir()
    photos.rename(tmp_path / "zip" / "flowers")
    source = open_source(tmp_path)
    assert (source.classes, source.layout) == (("ant", "bee", "cow"), "all in zip/flowers")
    (tmp_path / "docs").mkdir()
    with pytest.raises(DataError, match="class folder .*/docs has no image"):
        open_source(tmp_path)


def test_class_names_are_compared_in_nfc(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    add_images(tmp_path / "train" / composed, 6)
    add_images(tmp_path / "train" / decomposed, 2)
    add_images(tmp_path / "train" / "tea", 6)
    add_images(tmp_path / "test" / decomposed, 2)
    source = open_source(tmp_path)
    assert source.classes == (composed, "tea")
    assert splits_by_class(source)["train", composed] == 8
    assert splits_by_class(source)["test", composed] == 2


def test_class_may_be_called_train(photos):
    (photos / "ant").rename(photos / "train")
    assert open_source(photos).classes == ("bee", "cow", "train")
