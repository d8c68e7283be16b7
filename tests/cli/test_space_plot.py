"""The picture of a space."""

import pytest

from nas.cli.space_plot import draw_space
from nas.space import load_definition, load_space
from nas.space.elastic import MAX_SIZE
from nas.space.summary import sample_graphs


def test_picture_of_a_space_names_its_published_networks(tmp_path):
    space = load_space("squeezenet", image_size=32)
    sample = sample_graphs(space)
    path = tmp_path / "space.svg"
    draw_space(space, sample, path)
    text = path.read_text()
    for reference in space.references:
        assert f">{reference.name}<" in text
    assert "squeezenet at 32 px, 10 classes" in text
    draw_space(space, sample, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text


@pytest.mark.parametrize(
    "space",
    [
        load_definition("mobilenet_tiny"),
        load_space("mobilenet_tiny", image_size=MAX_SIZE, channels=MAX_SIZE),
    ],
    ids=["small", "counts beyond 64 bits"],
)
def test_picture_of_a_space_without_published_networks(space, tmp_path):
    path = tmp_path / "space.png"
    draw_space(space, sample_graphs(space), path)
    assert path.read_bytes().startswith(b"\x89PNG")
