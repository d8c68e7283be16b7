import os
import subprocess
import sys

import pytest

from nas.errors import RequestError, RunFolderError, SpaceError
from nas.files.names import check_name, name_like, require_identifier, require_name, require_utf8
from tests.commands import WITHOUT_UTF8

VALID_NAMES = ["a", "7", "mobilenet_x0.5", "mobilenet_v2_1.0", "A-b.c_d", "console", "a" * 64]
INVALID_NAMES = [
    "", ".", ".hidden", "-option", "_private", "../../x", "a/b", "a\\b", "$x^{2$", "a b", "a\n",
    "a\0", "\x1b[31m", "é", "\udc80", "a.", "a" * 65, "a" * 300, "CON", "nul.py", "com1",
    None, 5, ["a"], b"a",
]  # fmt: skip


@pytest.mark.parametrize("name", VALID_NAMES)
def test_valid_names_are_returned(name):
    assert check_name(name) == require_name(name, "The name of a space") == name


@pytest.mark.parametrize("name", INVALID_NAMES, ids=lambda name: ascii(name)[:12])
def test_invalid_names_are_refused(name):
    with pytest.raises(ValueError, match="^use "):
        check_name(name)
    with pytest.raises(SpaceError, match=r"^The name of a space is .*: use ") as error:
        require_name(name, "The name of a space", SpaceError)
    assert len(str(error.value)) < 250
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["", "a.b", "5", "a" * 65, "a-b", "\x1b", None, 5])
def test_invalid_identifiers_are_refused(name):
    assert require_identifier("stage1", "Space a") == "stage1"
    with pytest.raises(RequestError, match=r"^Space a: .* is not a name\. Use a word") as error:
        require_identifier(name, "Space a")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("text", "name"),
    [
        *((name, name) for name in VALID_NAMES),
        ("My job", "My-job"),
        ("Café photos (2)", "Cafe-photos-2"),
        ("a - b", "a-b"),
        (".hidden.", "hidden"),
        ("x" * 80, "x" * 64),
    ],
)
def test_name_resembles_a_text_and_is_valid(text, name):
    assert name_like(text) == check_name(name)


@pytest.mark.parametrize("text", ["", "фото", "...", "con"])
def test_no_name_is_made_of_other_texts(text):
    with pytest.raises(ValueError, match="use "):
        name_like(text)


def test_path_that_is_no_utf8_is_refused(tmp_path):
    require_utf8(tmp_path / "Ä一")
    with pytest.raises(RunFolderError, match=r"r.udcfcn' is not valid UTF-8.* Rename the folder"):
        require_utf8(tmp_path / os.fsdecode(b"r\xfcn"))


def test_path_in_a_locale_without_utf8_says_how_python_starts():
    code = (
        "import pathlib, sys\n"
        "from nas.files.names import require_utf8\n"
        "require_utf8(pathlib.Path(sys.argv[1]))"
    )
    environment = {**os.environ, **WITHOUT_UTF8}
    done = subprocess.run(
        [sys.executable, "-c", code, "é".encode()],
        env=environment,
        capture_output=True,
        check=False,
    )
    if b"ascii" not in subprocess.check_output(
        [sys.executable, "-c", "import sys; print(sys.getfilesystemencoding())"], env=environment
    ):
        pytest.skip("the system has UTF-8 in the locale C")
    assert b"The locale has no UTF-8" in done.stderr
    assert done.stderr.strip().endswith(b"Start Python with PYTHONUTF8=1.")
