import os

from PIL import Image

from nas.data.sources import IMAGE_EXTENSIONS, printable_line


def test_image_extensions_are_known_to_pillow_and_safe():
    registered = {name.lower() for name in Image.registered_extensions()}
    assert set(IMAGE_EXTENSIONS) <= registered | {".apng"}
    assert not {".eps", ".ps", ".pdf", ".mpeg", ".h5"} & set(IMAGE_EXTENSIONS)


def test_printable_line_escapes_line_feeds_and_control_characters():
    assert printable_line(os.fsdecode(b"a\nb\xff\x1b[0m")) == r"a\nb\udcff\x1b[0m"
    assert printable_line("två 蜂") == "två 蜂"
