import pytest
from matplotlib.figure import Figure

from nas.display import plotting
from nas.errors import RequestError


@pytest.fixture
def figure():
    figure = Figure(figsize=(4, 3))
    figure.subplots().plot([1, 2], [3, 4])
    return figure


def test_36_groups_have_different_styles():
    styles = {tuple(plotting.group_style(index).items()) for index in range(36)}
    assert len(styles) == 36


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("space.pdf", r"ends in \.png or \.svg"),
        ("space", r"ends in \.png or \.svg"),
        ("nowhere/space.png", "There is no folder"),
        ("folder.png", "Name a file in it"),
    ],
)
def test_path_that_no_picture_can_be_written_to_is_refused(tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RequestError, match=message):
        plotting.check_picture_path(tmp_path / name)


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml")])
def test_picture_is_written_in_the_format_of_its_suffix(figure, tmp_path, name, start):
    plotting.check_picture_path(tmp_path / name)
    plotting.save(figure, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_equal_figures_are_equal_svg(figure, tmp_path):
    plotting.save(figure, tmp_path / "a.svg")
    plotting.save(figure, tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert "<svg" in text
    assert "</svg>" in text
    assert "<dc:date>" not in text


def test_labels_cover_neither_points_nor_each_other():
    axes = Figure(figsize=(6, 6)).subplots()
    points = [(0.0, 0.0, "a", "black"), (0.01, 0.01, "b", "black"), (1.0, 1.0, "c", "black")]
    axes.scatter([x for x, *_ in points], [y for _, y, *_ in points])
    plotting.label_points(axes, points)
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert set(heights) == {"a", "b", "c"}
    assert abs(heights["a"] - heights["b"]) >= plotting.LINE_HEIGHT
