import pytest

from nas.describe import figures, layers, spaces
from nas.describe.architectures import find
from nas.errors import RequestError
from nas.space import load_definition, load_space


def test_a_picture_of_a_space_names_its_published_networks(tmp_path):
    space = load_space("squeezenet", image_size=32)
    counts = spaces.draw(space)
    found = spaces.space(space, counts, {})
    path = tmp_path / "space.svg"
    figures.draw_space(found, counts, path)
    text = path.read_text()
    for reference in space.references:
        assert f">{reference.name}<" in text
    assert "squeezenet at 32 px, 10 classes" in text
    figures.draw_space(found, counts, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text


def test_a_picture_of_a_small_space_without_published_networks(tmp_path):
    space = load_definition("mobilenet_tiny")
    counts = spaces.draw(space)
    path = tmp_path / "space.png"
    figures.draw_space(spaces.space(space, counts, {}), counts, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_a_network_names_its_stages(tmp_path):
    path = tmp_path / "network.svg"
    figures.draw_network(layers.network(find("mobilenet_v3_small", {})), path)
    assert ">stage5<" in path.read_text()


@pytest.mark.parametrize("name", ["space.pdf", "space", "nowhere/space.png"])
def test_what_cannot_be_written_is_refused(tmp_path, name):
    with pytest.raises(RequestError, match=r"\.png or \.svg|no folder"):
        figures.check_suffix(tmp_path / name)
