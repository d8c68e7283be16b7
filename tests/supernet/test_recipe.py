import pytest

from nas.space import load_space
from nas.supernet.recipe import Recipe


@pytest.mark.parametrize(
    ("name", "image_size", "share"),
    [
        ("mobilenet_tiny", 32, 2 / 3),
        ("mobilenet", 16, 0.0),  # few pixels, though many multiply-accumulates
        ("shufflenet_tiny", 32, 0.0),  # networks too small to gain much time
    ],
)
def test_smaller_images_are_the_default_where_they_save_time(name, image_size, share):
    space = load_space(name, image_size=image_size)
    assert Recipe().resolve_progressive_resizing(space) == share
    assert Recipe(progressive_resizing=0.5).resolve_progressive_resizing(space) == 0.5
