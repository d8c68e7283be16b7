"""The figures of a run for papers: which there are, their sizes, and that their text stays text."""

import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from PIL import Image

from nas.errors import RequestError
from nas.opened_run import open_run
from nas.report.figures import ONE_COLUMN, PRINTED_DPI, TWO_COLUMNS, write_figures
from nas.run import candidates
from tests.conftest import EXAMPLE

FIGURES = {"front": TWO_COLUMNS, "agreement": ONE_COLUMN}


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> Path:
    """Return a folder with the figures of the example, and a file of another name."""
    folder = tmp_path_factory.mktemp("figures")
    (folder / "mine.png").write_text("mine")
    (folder / "front.png").write_text("the figure of before")
    paths = write_figures(open_run(EXAMPLE), folder / ".")
    assert {path.name for path in paths} == {
        f"{name}.{suffix}" for name in FIGURES for suffix in ("png", "svg")
    }
    return folder


def test_figures_of_other_names_stay(figures):
    assert (figures / "mine.png").read_text() == "mine"
    assert len(list(figures.iterdir())) == 2 * len(FIGURES) + 1


@pytest.mark.parametrize(("name", "inches"), FIGURES.items())
def test_figure_is_one_or_two_columns_wide_and_its_text_is_text(figures, name, inches):
    with Image.open(figures / f"{name}.png") as picture:
        assert picture.width == pytest.approx(inches * PRINTED_DPI, abs=1)
        assert min(picture.info["dpi"]) == pytest.approx(PRINTED_DPI, abs=1)
    root = ElementTree.parse(figures / f"{name}.svg").getroot()
    assert float(root.get("width").removesuffix("pt")) == pytest.approx(72 * inches, abs=0.1)
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert len(texts) > 5
    style = " ".join(node.get("style", "") for node in root.iter())
    sizes = {float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", style)}
    assert min(sizes) >= 7


def test_front_without_timed_networks_and_models_is_the_only_figure(untrained_run, tmp_path):
    shutil.rmtree(untrained_run / "models", ignore_errors=True)
    rows = candidates.read(untrained_run / "trials.csv").assign(measured_us=None)
    candidates.write(rows, untrained_run / "trials.csv")
    paths = write_figures(open_run(untrained_run), tmp_path / "new" / "figures")
    assert {path.stem for path in paths} == {"front"}


def test_folder_that_cannot_be_made_is_a_wrong_request(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "figures"):
        with pytest.raises(RequestError, match=r"The folder .* cannot be made"):
            write_figures(open_run(EXAMPLE), folder)
