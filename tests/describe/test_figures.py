from nas.describe import figures
from nas.describe.architectures import describe_architecture, resolve_architecture
from nas.describe.spaces import describe_space, sample_counts
from nas.space import load_definition, load_space


def test_figure_of_a_space_names_its_published_networks(tmp_path):
    space = load_space("squeezenet", image_size=32)
    counts = sample_counts(space)
    description = describe_space(space, counts, {})
    path = tmp_path / "space.svg"
    figures.draw_space(description, counts, path)
    text = path.read_text()
    for reference in space.references:
        assert f">{reference.name}<" in text
    assert "squeezenet at 32 px, 10 classes" in text
    figures.draw_space(description, counts, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text


def test_figure_of_a_small_space_without_published_networks(tmp_path):
    space = load_definition("mobilenet_tiny")
    counts = sample_counts(space)
    path = tmp_path / "space.png"
    figures.draw_space(describe_space(space, counts, {}), counts, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_figure_of_an_architecture_names_its_stages(tmp_path):
    path = tmp_path / "network.svg"
    resolved = resolve_architecture("mobilenet_v3_small", {})
    figures.draw_architecture(describe_architecture(resolved), path)
    assert ">stage5<" in path.read_text()
