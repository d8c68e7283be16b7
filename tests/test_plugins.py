"""Plug-ins of other packages: a source of images and an export format, and what does not load."""

import subprocess
import sys

import pytest

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


@pytest.fixture
def run(tmp_path):
    """Return a function that runs Python where a package with plug-ins is installed."""
    (tmp_path / "stripes.py").write_text(MODULE)
    (tmp_path / "raises.py").write_text("raise RuntimeError('no home directory')")
    (tmp_path / "exits.py").write_text("raise SystemExit('no license')")
    info = tmp_path / "stripes-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stripes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)

    def run(code):
        program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        return done.stdout + done.stderr.strip().rpartition("\n")[2]

    return run


def test_images_of_a_plug_in_are_loaded(run):
    load = "import nas; data = nas.load_dataset({source}, progress=False); print(data.summary)"
    assert "40 images of 2 classes" in run(load.format(source="'stripes'"))
    assert "80 images of 2 classes" in run(load.format(source="'stripes:2'"))
    opened = "__import__('stripes').open_stripes('3')"
    assert "120 images of 2 classes" in run(load.format(source=opened))


def test_format_of_a_plug_in_is_one_of_the_formats(run):
    code = "from nas.deploy.formats import format_names, model_format\n"
    assert "weights.bin" in run(code + "print(model_format('weights').file_name)")
    assert "onnx" in run(code + "print(format_names())")


def test_list_of_formats_leaves_out_what_does_not_load_with_a_warning(run):
    code = """
import warnings
from nas.deploy.formats import all_formats
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    names = [each.name for each in all_formats()]
print("weights" in names, "onnx" in names, sorted(str(each.message)[:15] for each in caught))
"""
    left_out = ["Format 'broken'", "Format 'exits' ", "Format 'other':", "Format 'raises'"]
    assert run(code).strip() == f"True True {left_out}"


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
def test_what_does_not_load_is_refused(run, name, message):
    assert message in run(f"from nas.deploy.formats import model_format; model_format({name!r})")
