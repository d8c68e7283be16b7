"""Recognises files that are not what their name says: pointers, web pages, cut libraries, UTF-16.

The `run.py` of an exported model holds a copy of this text, so that it imports the standard library
only.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from pathlib import Path

HEAD_BYTES = 64
"""How much of a file `foreign_kind` needs."""

_FOREIGN_KINDS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself, which `git lfs pull` "
    "fetches",
    b"/annex/objects/": "a pointer of git-annex, not the file itself, which `git annex get` "
    "fetches",
    b"<": "a web page (HTML or XML), which a download from a wrong address leaves",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed with gzip, and has to be unpacked first",
}
"""What files of other kinds begin with, and what they are."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What many programs of Windows write before text in UTF-8."""

_UTF_16 = re.compile(
    rb"\xff\xfe(?:[\t\n\r -~]\0){2}|\xfe\xff(?:\0[\t\n\r -~]){2}"
    rb"|(?:[\t\n\r -~]\0){4}|(?:\0[\t\n\r -~]){4}"
)
"""How text in UTF-16 begins: with a byte order mark or without, in either order of the bytes."""

_UTF_16_KIND = (
    "text in UTF-16, which Windows PowerShell writes with > and Notepad as Unicode, and has to be "
    "saved as UTF-8"
)

_ELF_HEADERS = {1: ("I", 32, 46), 2: ("Q", 40, 58)}
"""Type and position of the offset of an ELF file's sections, and position of their size and number,
for 32 and 64 bits."""


def foreign_kind(head: bytes) -> str:
    """Return what a file is that begins with these bytes: `a pointer of Git LFS, ...`.

    The text is empty for a kind that is none of those that take the place of other files. Any
    content that begins with "<" counts as a web page.
    """
    if _UTF_16.match(head):
        return _UTF_16_KIND
    start = without_mark(head[:HEAD_BYTES]).lstrip()
    return next((what for first, what in _FOREIGN_KINDS.items() if start.startswith(first)), "")


def without_mark(content: bytes) -> bytes:
    """Return the content of a text file without the byte order mark that it may begin with."""
    return content.removeprefix(BYTE_ORDER_MARK)


def file_problem(path: Path) -> str:
    """Return why a file cannot be used, without its path: `it is empty`.

    The text is empty if nothing speaks against the file: it is a regular file with content, of no
    foreign kind, and not a shared library that ends early, which would end a process that loads it.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # Opening a pipe blocks.
            return "it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file"
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if not head:
        return "it is empty"
    if kind := foreign_kind(head):
        return f"it is {kind}"
    if status.st_size < (smallest := _smallest_size(head)):
        return f"it is cut: {status.st_size} of at least {smallest} bytes"
    return ""


NOTHING_RUNS = "nothing may be run from its disk, which is mounted with the option noexec"
"""Why a program or a library cannot be used where `may_run_from` is false."""


def may_run_from(path: Path) -> bool:
    """Return whether the disk of a file or folder lets programs be run and libraries be loaded."""
    if not hasattr(os, "ST_NOEXEC"):  # The system has no such disks, or does not say.
        return True
    return not os.statvfs(path).f_flag & os.ST_NOEXEC


def _smallest_size(head: bytes) -> int:
    """Return the least size of the shared library that begins with these bytes; 0 for other files.

    The table of its sections is the last part of an ELF file.
    """
    if head[:4] != b"\x7fELF":
        return 0
    if len(head) < HEAD_BYTES or head[4] not in _ELF_HEADERS:
        return HEAD_BYTES
    order = ">" if head[5] == 2 else "<"
    kind, offset_at, sizes_at = _ELF_HEADERS[head[4]]
    (offset,) = struct.unpack_from(order + kind, head, offset_at)
    size, count = struct.unpack_from(order + "HH", head, sizes_at)
    return int(offset + size * count)
