import os

import pytest

from nas.data.sources import open_source
from nas.errors import DataError, RequestError


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nowhere", r"no data at /nowhere"),
        ("~nosuchuser/photos", r"no data at ~nosuchuser/photos in /.* \(No such file"),
        ("", "the path is empty"),
        ("photos\0", r"photos\\x00 in /.* \(.*null"),
        ("x" * 5000, r"x{150}\.\.\.x{150} in /.* \(File name too long\)"),
        ("x/" * 3000, r"File name too long"),
        ("/dev/null/photos", "Not a directory"),
    ],
)
def test_path_that_cannot_be_opened_is_an_error_with_the_reason(path, reason):
    with pytest.raises(DataError, match=reason) as caught:
        open_source(path)
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


def test_path_with_tilde_without_home_folder_is_an_error(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    with pytest.raises(RequestError, match="this user has no home folder"):
        open_source("~/photos")


@pytest.mark.parametrize("name", ["device", "device.parquet", "notes.txt"])
def test_pipe_or_another_file_is_not_a_dataset(tmp_path, name):
    if name == "notes.txt":
        (tmp_path / name).write_text("hello")
    else:
        os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=f"{name} is not a dataset"):
        open_source(tmp_path / name)
