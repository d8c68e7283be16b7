"""Further images for training: `[data] extra`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.data import decoding, load_dataset
from nas.data.check import check_data
from nas.data.image_cache import SelectedPixels
from nas.errors import DataError
from tests.data.folders import write_noise


def write(folder: Path, images: dict[str, np.ndarray]) -> Path:
    """Save images as PNG files, in a folder for each class."""
    for name, pixels in images.items():
        (folder / name).mkdir(parents=True)
        for at, image in enumerate(pixels):
            Image.fromarray(image.squeeze()).save(folder / name / f"{at}.png")
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (60, 8, 8, 3), np.uint8) for name in ("cat", "dog")}
    return write(tmp_path_factory.mktemp("source"), images)


@pytest.fixture
def further(tmp_path) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (7, 8, 8, 3), np.uint8)


def test_further_images_are_for_training_alone(source, tmp_path, further):
    before = load_dataset(source, image_size=8)
    # Grey images become RGB, as the others are.
    grey = further[:2, :, :, :1]
    extra = [write(tmp_path / "a", {"dog": further}), write(tmp_path / "b", {"cat": grey})]
    data = load_dataset(source, image_size=8, extra=extra)
    count = len(before.train)
    assert (data.train.pixels[:count] == before.train.pixels).all()
    assert (data.train.labels[count:] == [1] * 7 + [0] * 2).all()
    assert (np.sort(data.train.pixels[count : count + 7], axis=0) == np.sort(further, axis=0)).all()
    assert (data.train.pixels[count + 7 :] == np.broadcast_to(grey, (2, 8, 8, 3))).all()
    for part in ("search", "holdout", "test"):
        assert data.digest_of(part) == before.digest_of(part)
    assert data.digest != before.digest


def test_images_that_judge_are_left_out(source, tmp_path, further):
    before = load_dataset(source, image_size=8)
    known = {"dog": np.concatenate([further, before.test.pixels[:1], before.holdout.pixels[:1]])}
    with pytest.warns(UserWarning, match="2 of 9 further images .* are left out"):
        data = load_dataset(source, image_size=8, extra=[write(tmp_path / "extra", known)])
    assert len(data.train) == len(before.train) + 7


def test_other_classes_and_folders_are_refused(source, tmp_path, further):
    with pytest.raises(DataError, match="have the class bird, which .* does not have"):
        load_dataset(source, image_size=8, extra=[write(tmp_path / "extra", {"bird": further})])
    with pytest.raises(DataError, match="missing"):
        load_dataset(source, image_size=8, extra=[tmp_path / "missing"])
    (tmp_path / "broken" / "dog").mkdir(parents=True)
    (tmp_path / "broken" / "dog" / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="has no image that can be used"):
        load_dataset(source, image_size=8, extra=[tmp_path / "broken"])


SIDE = 32


def photo(rng: np.random.Generator) -> np.ndarray:
    """Return an image `32 x 32 x 3` of large shapes, which a change of brightness leaves alike."""
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
    return np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def patients(tmp_path_factory) -> Path:
    """Two classes of twelve patients with four photos each, such as `cat/a3_1.png`."""
    root, rng = tmp_path_factory.mktemp("patients"), np.random.default_rng(0)
    for name in ("cat", "dog"):
        (root / name).mkdir()
        for index in range(48):
            path = root / name / f"{name[0]}{index // 4}_{index % 4}.png"
            Image.fromarray(photo(rng)).save(path)
    return root


PATIENT = r"([cd]\d+)_"


def patients_of(data, *parts: str) -> list[str]:
    """Return the patients of some parts, with a name for each image."""
    places = zip(data.inventory.locations, data.inventory.parts, strict=True)
    return [Path(place).name.split("_")[0] for place, part in places if part in parts]


def add_further(folder: Path, patients: list[str], rng: np.random.Generator) -> Path:
    """Write two new photos of each of some patients."""
    for each in patients:
        for index in range(2):
            path = folder / ("cat" if each[0] == "c" else "dog") / f"{each}_new{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo(rng)).save(path)
    return folder


def test_groups_with_images_that_judge_are_left_out(patients, tmp_path):
    before = load_dataset(patients, image_size=SIDE, group=PATIENT)
    judging = sorted(set(patients_of(before, "search", "holdout", "test")))
    learned = sorted(set(patients_of(before, "train")))
    assert not set(judging) & set(learned)
    rng = np.random.default_rng(1)
    extra = add_further(tmp_path, [*judging, learned[0], "c99"], rng)
    left_out = 2 * len(judging)
    with pytest.warns(
        UserWarning, match=f"{left_out} of {left_out + 4} .*: {left_out} are in groups of such"
    ):
        data = load_dataset(patients, image_size=SIDE, group=PATIENT, extra=[extra])
    assert len(data.train) == len(before.train) + 4
    for part in ("search", "holdout", "test"):
        assert data.digest_of(part) == before.digest_of(part)
    assert set(patients_of(data, "train")) == {*learned, "c99"}
    assert set(patients_of(data, "left out")) == set(judging)


@pytest.mark.parametrize("on_duplicate", ["warn", "group"])
def test_further_images_are_in_the_groups_of_others(patients, tmp_path, on_duplicate):
    options = {"image_size": SIDE, "group": PATIENT, "on_duplicate": on_duplicate}
    learned = sorted(set(patients_of(load_dataset(patients, **options), "train")))
    extra = add_further(tmp_path, [*learned, "c99"], np.random.default_rng(1))
    data = load_dataset(patients, extra=[extra], **options)
    owners = patients_of(data, "train")
    for count in (2, 3):
        folds = data.train.folds(count, np.random.default_rng(0)).tolist()
        by_patient = {(owner, fold) for owner, fold in zip(owners, folds, strict=True)}
        assert len(by_patient) == len(set(owners)) == len(learned) + 1
    for part in ("search", "holdout", "test"):
        of_part = list(zip(patients_of(data, part), getattr(data, part).groups, strict=True))
        assert len(set(of_part)) == len({owner for owner, _ in of_part})
        assert not {number for _, number in of_part} & set(data.train.groups)


@pytest.mark.parametrize("on_duplicate", ["warn", "group", "fail"])
def test_near_duplicates_of_images_that_judge(patients, tmp_path, on_duplicate):
    """A brighter photo of the test part is warned of, left out with its group, or refused."""
    before = load_dataset(patients, image_size=SIDE, group=PATIENT)
    brighter = np.clip(before.test.pixels[0] * 1.2, 0, 255).astype(np.uint8)
    name = before.classes[before.test.labels[0]]
    extra = add_further(tmp_path, [f"{name[0]}77"], np.random.default_rng(1))
    Image.fromarray(brighter).save(extra / name / f"{name[0]}77_copy.png")
    options = {"image_size": SIDE, "group": PATIENT, "on_duplicate": on_duplicate}
    if on_duplicate == "fail":
        with pytest.raises(DataError, match="duplicates in two parts, such as .*77_copy.png"):
            load_dataset(patients, extra=[extra], **options)
        return
    if on_duplicate == "group":
        with pytest.warns(UserWarning, match="3 of 3 .* are left out: 3 are in groups"):
            data = load_dataset(patients, extra=[extra], **options)
        assert data.digest == load_dataset(patients, **options).digest
        return
    check = check_data(load_dataset(patients, extra=[extra], **options))
    assert check.leaked["test"] == 1
    assert not any(check_data(before).leaked.values())


def test_images_on_disk_stay_there(tmp_path, monkeypatch):
    source = write_noise(tmp_path / "source", (9, 9, 3))
    extra = add_further(tmp_path / "extra", ["c1", "d1"], np.random.default_rng(1))
    for name, other in (("cat", "bee"), ("dog", "cow")):
        (extra / name).rename(extra / other)
    in_memory = load_dataset(source, image_size=8, extra=[extra])
    monkeypatch.setattr(decoding, "MAX_BYTES_IN_MEMORY", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = load_dataset(source, image_size=8, extra=[extra])
    assert isinstance(data.train.pixels, SelectedPixels)
    assert all(isinstance(each, np.memmap) for each in data.train.pixels.arrays)
    assert data.digest == in_memory.digest
    order = np.random.default_rng(0).permutation(len(data.train))
    assert (data.train.pixels[order] == in_memory.train.pixels[order]).all()
