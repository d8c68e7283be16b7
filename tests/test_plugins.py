"""Plug-ins of other packages: a source of images and an export format, and what does not load."""

from importlib.metadata import entry_points

import pytest

import nas
from nas.data.sources import SOURCES
from nas.deploy.formats import FORMATS, all_formats, format_names, model_format
from nas.errors import RequestError

MODULE = """
import numpy as np

from nas.data.sources import Sample, Source
from nas.deploy.formats.base import ModelFormat


def open_stripes(width="1"):
    samples = [
        Sample("train", f"image {i}", np.full((8, 8), 250 * (i % 2), np.uint8), i % 2)
        for i in range(40 * int(width))
    ]
    return Source("stripes", samples, len(samples), ("dark", "bright"), image_size=8)


class Weights(ModelFormat):
    name = "weights"
    file_name = "weights.bin"

    def write(self, model, quantised, path):
        path.write_bytes(b"")

    def load(self, path, threads=1):
        raise NotImplementedError
"""
ENTRY_POINTS = """
[nas.sources]
stripes = stripes:open_stripes
[nas.formats]
weights = stripes:Weights
broken = stripes:Missing
other = stripes:open_stripes
raises = raises:Weights
exits = exits:Weights
"""


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    """Install a package with plug-ins, and others that do not load."""
    (tmp_path / "stripes.py").write_text(MODULE)
    (tmp_path / "raises.py").write_text("raise RuntimeError('no home directory')")
    (tmp_path / "exits.py").write_text("raise SystemExit('no license')")
    info = tmp_path / "stripes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    for point in (FORMATS, SOURCES):
        installed = {each.name: each for each in entry_points(group=point.group)}
        monkeypatch.setattr(point, "_entry_points", installed)
        monkeypatch.setattr(point, "_loaded", {})


def test_images_of_a_plug_in_are_loaded():
    from stripes import open_stripes

    for source, count in (("stripes", 40), ("stripes:2", 80), (open_stripes("3"), 120)):
        data = nas.load_dataset(source, progress=False)
        assert f"{count} images of 2 classes" in data.summary


def test_format_of_a_plug_in_is_one_of_the_formats():
    assert model_format("weights").file_name == "weights.bin"
    assert {"weights", "onnx"} <= set(format_names())


def test_list_of_formats_leaves_out_what_does_not_load_with_a_warning():
    with pytest.warns(UserWarning, match="Format '") as warnings:
        names = {each.name for each in all_formats()}
    assert names >= {"weights", "onnx"}
    assert sorted(str(each.message)[:15] for each in warnings) == [
        "Format 'broken'", "Format 'exits' ", "Format 'other':", "Format 'raises'"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "Format 'broken' does not load from 'stripes:Missing'"),
        ("other", "'stripes:open_stripes' is no subclass of nas.deploy.formats.ModelFormat"),
        ("raises", "does not load from 'raises:Weights': RuntimeError: no home directory."),
        ("exits", "does not load from 'exits:Weights': SystemExit: no license."),
        ("none", "There is no format 'none'"),
    ],
)
def test_what_does_not_load_is_refused(name, message):
    with pytest.raises(RequestError, match=message):
        model_format(name)
