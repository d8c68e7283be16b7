"""What a check of a dataset finds, in photos made for it."""

import numpy as np
import pytest
from PIL import Image

from nas import load_dataset
from nas.data.check import check_data
from nas.errors import DataError

SIDE = 32


@pytest.fixture
def photos(tmp_path):
    """Two classes of 60 and 12 noisy photos; the first of ant is in test and among bees as well."""
    rng = np.random.default_rng(0)

    def write(path, image):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    for name, count in (("ant", 60), ("bee", 12)):
        for index in range(count):
            coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            image = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE)))
            write(tmp_path / "train" / name / f"{name}{index}_0.png", image)
            if index == 0:
                first = image
            if index < 3:
                other = np.asarray(Image.fromarray(coarse[::-1].copy()).resize((SIDE, SIDE)))
                write(tmp_path / "test" / name / f"{name}{index}_1.png", other)
        if name == "ant":
            shown = first
    write(tmp_path / "test" / "ant" / "copy.png", shown)
    write(tmp_path / "train" / "bee" / "mistake.png", shown)
    return tmp_path


def test_check_counts_classes_sizes_formats_and_duplicates(photos):
    check = check_data(load_dataset(photos, image_size=SIDE))
    assert check.class_counts == {"ant": 64, "bee": 16}
    assert check.sizes == ("32x32",)
    assert check.formats == {"PNG RGB": 80}
    assert check.exact == 2
    assert check.conflicts >= 1
    assert sum(check.leaked.values()) >= 1
    assert any(each.classes == ("ant", "bee") or each.is_harmful for each in check.examples)
    text = "; ".join(check.problems)
    assert "have a duplicate among the training images" in text
    assert "have two classes" in text
    assert check.imbalance >= 3
    assert "times the smallest" in text


def test_duplicates_are_kept_on_one_side(photos):
    data = load_dataset(photos, image_size=SIDE, on_duplicate="group")
    check = check_data(data)
    assert not any(check.leaked.values())
    assert check.left_out == 2
    assert sum(data.counts.values()) == 78


def test_duplicates_are_refused_if_the_job_says_so(photos):
    with pytest.raises(DataError, match=r"duplicates in two (parts|classes), such as .*_0\.png"):
        load_dataset(photos, image_size=SIDE, on_duplicate="fail")


def write_sizes(folder, sizes):
    """Write two classes of images of these sizes, width and height."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (folder / name).mkdir(parents=True)
        for index, (width, height) in enumerate(sizes):
            pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def test_images_that_the_crop_cuts_away_are_warned_of(tmp_path):
    lines = write_sizes(tmp_path / "lines", [(480, 24), (24, 480)] + [(32, 24)] * 18)
    check = check_data(load_dataset(lines, image_size=16))
    (problem,) = (each for each in check.problems if "crop" in each)
    assert "4 of 40 images (10%)" in problem
    assert "up to 95%" in problem
    assert 'set resize = "contain" in [data]' in problem
    whole = check_data(load_dataset(lines, image_size=16, resize="contain"))
    assert not any("crop" in each for each in whole.problems)
    photos = write_sizes(tmp_path / "photos", [(160, 90), (90, 160)] * 10)
    assert check_data(load_dataset(photos, image_size=16)).lost_to_crop == ""
    with pytest.raises(DataError, match="resize"):
        load_dataset(photos, image_size=16, resize="stretch")


def test_whole_images_show_what_the_crop_cuts_away(tmp_path):
    """The classes differ in the left third of images of 48 x 16 pixels alone."""
    for name, level in (("ant", 0), ("bee", 255)):
        (tmp_path / name).mkdir()
        for index in range(20):
            pixels = np.full((16, 48), 90 + index, np.uint8)
            pixels[:, :16] = level
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    spread = {}
    for resize in ("cover", "contain"):
        train = load_dataset(tmp_path, image_size=16, resize=resize).train
        by_class = [train.pixels[train.labels == label].mean(0) for label in (0, 1)]
        spread[resize] = np.abs(by_class[1] - by_class[0]).max()
    assert spread["cover"] < 20
    assert spread["contain"] > 250


def test_duplicates_of_what_is_left_out_are_allowed(tmp_path):
    """The first photo of a train folder is in the test folder, too, and so is its group."""
    rng = np.random.default_rng(0)
    for folder, count in (("train", 12), ("test", 2)):
        for name in ("ant", "bee"):
            (tmp_path / folder / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{name}{index}.png")
    for name in ("ant", "bee"):
        (tmp_path / "train" / name / f"{name}0.png").write_bytes(
            (tmp_path / "test" / name / f"{name}0.png").read_bytes()
        )
    options = {"image_size": 8, "group": r"([a-z]+\d+)\."}
    data = load_dataset(tmp_path, on_duplicate="fail", **options)
    assert (data.inventory.parts == "left out").sum() == 4
    # Of three equal images, the first is left out; the others are in two parts.
    content = (tmp_path / "test" / "ant" / "ant0.png").read_bytes()
    (tmp_path / "train" / "ant" / "other.png").write_bytes(content)
    with pytest.raises(DataError, match=r"in two parts, such as .*other\.png and .*ant0\.png"):
        load_dataset(tmp_path, on_duplicate="fail", **options)


def test_every_copy_of_a_training_image_is_counted(tmp_path):
    """The first of three equal images is a test image, and so is the last."""
    rng = np.random.default_rng(0)
    for folder, count in (("test", 3), ("train", 12)):
        for name in ("ant", "bee"):
            (tmp_path / folder / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / name / f"{index}.png")
    content = (tmp_path / "train" / "ant" / "0.png").read_bytes()
    for place in ("ant/0.png", "ant/2.png"):
        (tmp_path / "test" / place).write_bytes(content)
    assert check_data(load_dataset(tmp_path, image_size=8)).leaked["test"] == 2


def test_images_of_one_group_are_on_one_side(photos):
    data = load_dataset(photos, image_size=SIDE, group=r"([a-z]+\d+)_")
    parts, locations = data.inventory.parts, data.inventory.locations
    sides = {}
    for part, location in zip(parts, locations, strict=True):
        if "_" in location and part != "left out":
            sides.setdefault(location.rpartition("/")[2].split("_")[0], set()).add(str(part))
    assert max(map(len, sides.values())) == 1
    assert (parts == "left out").sum() == 6


@pytest.mark.parametrize("frame", ["black", "noise"])
def test_frames_with_nothing_in_them_join_no_clips(tmp_path, frame):
    """Each of twelve clips begins with two frames that show nothing, of which some are equal."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for clip in range(6):
            coarse = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
            for index in range(5):
                image = Image.fromarray(coarse).resize((SIDE, SIDE))
                if index < 2:
                    level = 3 if frame == "noise" else 1
                    image = Image.fromarray(
                        rng.integers(0, level, (SIDE, SIDE, 3)).astype(np.uint8)
                    )
                image.save(tmp_path / name / f"{name}{clip}_{index}.png")
    data = load_dataset(
        tmp_path, image_size=SIDE, group=r"([a-z]+\d+)_", on_duplicate="group", progress=False
    )
    parts = {}
    for part, location in zip(data.inventory.parts, data.inventory.locations, strict=True):
        parts.setdefault(location.rpartition("/")[2].split("_")[0], set()).add(str(part))
    assert len(parts) == 12
    assert max(map(len, parts.values())) == 1
    assert set.union(*parts.values()) == {"train", "search", "holdout", "test"}
    text = "; ".join(check_data(data).problems)
    assert ("they are of one colour, or like many others" in text) == (frame == "black")
    assert "set on_duplicate" not in text


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (r"(\d+)_(\d)", "it has 2 groups in parentheses"),
        (r"([", "no regular expression"),
        (r"(zebra)", "matches no path, such as test/ant/ant0_1.png"),
        (r"\.(png)$", "images are left out, because other images of their groups are in"),
    ],
)
def test_expressions_that_tell_no_groups_are_refused(photos, expression, message):
    with pytest.raises(DataError) as refusal:
        load_dataset(photos, image_size=SIDE, group=expression)
    assert message in str(refusal.value)
    assert refusal.value.remedy
