"""Hypothesis strategies that damage files: bytes, JSON, JSON Lines, and other text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Damage = Callable[[bytes], st.SearchStrategy[bytes]]
"""Function that returns a strategy of damaged contents for the content of a whole file."""

VALUES: Sequence[Any] = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.5, 1.5, 1e308, 1e-320, 10**19, 10**30, -(10**400),
    float("nan"), float("inf"), "", "x", "1", "nan", "../../x", "a/b", "x" * 5000,
    "\x1b[2J\u2028\x00", [], {}, [1, 2], {"a": 1}, [[[[]]]],
)  # fmt: skip
"""Values that replace a field."""

WORDS: Sequence[bytes] = (
    b"", b"0", b"-1", b"8", b"1.5", b"nan", b"-inf", b"1e400", b"1" + b"0" * 40, b"10**400",
    b"true", b"None", b'""', b"'x'", b'"../../x"', b'"\\u0000"', b'"~nosuchuser/x"',
    b"\xed\xa0\x80", b"\x1b[2J", b"[]", b"()", b"{}", b"[" * 2000 + b"]" * 2000, b"1979-05-27",
    b"x" * 5000, b'"postgresql://user:SECRET@host/db"', b"x = 1", b"print(1)", b"exit(0)", b"1/0",
    b"lambda *a, **k: 0",
)  # fmt: skip
"""Words that replace one of a job file, a space file or a table."""

_WORD = re.compile(rb'"[^"\n]*"|[\w.+-]+')

DEEP = b"[" * 100_000
"""JSON that is nested too deeply for a recursive reader."""


def of_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy that flips, cuts, inserts, repeats or zeroes bytes."""
    at = st.integers(0, max(0, len(content) - 1))
    length = st.sampled_from([1, 2, 7, 64, 1000])

    def flip(positions: list[int], bit: int) -> bytes:
        changed = bytearray(content)
        for position in positions:
            changed[position] ^= 1 << bit
        return bytes(changed)

    return st.one_of(
        st.builds(flip, st.lists(at, min_size=1, max_size=4), st.integers(0, 7)),
        st.builds(lambda i: content[:i], at),
        st.builds(lambda i: content[i:], at),
        st.builds(lambda i, n: content[:i] + content[i + n :], at, length),
        st.builds(lambda i, n: content[:i] + content[i : i + n] + content[i:], at, length),
        st.builds(lambda i, n: content[:i] + bytes(n) + content[i + n :], at, length),
        st.builds(lambda i, more: content[:i] + more + content[i:], at, st.binary(max_size=9)),
        st.sampled_from(
            [b"", b"\n", b"\0", b"null\n", b"[]\n", b"{}\n", b"\xef\xbb\xbf" + content, DEEP]
        ),
        st.builds(lambda: content.replace(b"\n", b"\r\n")),
    )


def of_json(content: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy that drops, retypes, renames or repeats a JSON field, or damages bytes."""
    return st.one_of(_changed_json(content).map(_dumped), of_bytes(content))


def of_json_lines(content: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy that changes a field, drops or repeats lines, or damages bytes."""
    lines = content.splitlines(keepends=True)
    at = st.integers(0, max(0, len(lines) - 1))

    def change(i: int) -> st.SearchStrategy[bytes]:
        damaged = _changed_json(lines[i]).map(_dumped)
        return damaged.map(lambda line: b"".join([*lines[:i], line + b"\n", *lines[i + 1 :]]))

    return st.one_of(
        at.flatmap(change),
        at.flatmap(change),
        _moved(lines).map(b"".join),
        st.builds(lambda i: b"".join([*lines[:i], b'{"schema": 1', *lines[i:]]), at),
        of_bytes(content),
    )


def of_text(content: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy that replaces a word once or everywhere, moves lines, or damages bytes."""
    lines = content.splitlines(keepends=True)
    at, word = st.integers(0, len(lines) - 1), st.sampled_from(WORDS)
    places = st.sampled_from([match.span() for match in _WORD.finditer(content)])

    def replace(place: tuple[int, int], other: bytes) -> bytes:
        return content[: place[0]] + other + content[place[1] :]

    def replace_all(place: tuple[int, int], other: bytes) -> bytes:
        return content.replace(content[slice(*place)], other)

    return st.one_of(
        st.builds(replace, places, word),
        st.builds(replace, places, word),
        st.builds(replace_all, places, word),
        _moved(lines).map(b"".join),
        st.builds(lambda i, new: b"".join([*lines[:i], new, b"\n", *lines[i:]]), at, word),
        of_bytes(content),
    )


def _moved(lines: Sequence[Any]) -> st.SearchStrategy[list[Any]]:
    """Return a strategy that drops a line, or repeats one at another place."""
    at = st.integers(0, max(0, len(lines) - 1))
    return st.one_of(
        st.builds(lambda i: [*lines[:i], *lines[i + 1 :]], at),
        st.builds(lambda i, j: [*lines[:j], lines[i], *lines[j:]], at, at),
    )


@st.composite
def _changed_json(draw: st.DrawFn, content: bytes) -> Any:
    """Draw a JSON value with one change."""
    document = json.loads(content)
    places: list[tuple[Any, Any]] = []
    pending = [document]
    while pending:
        value = pending.pop()
        keys: Sequence[Any] = ()
        if isinstance(value, dict):
            keys = list(value)
        elif isinstance(value, list):
            keys = range(len(value))
        for key in keys:
            places.append((value, key))
            pending.append(value[key])
    if not places:
        return draw(st.sampled_from(VALUES))
    parent, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "wrap", "add", "repeat"]))
    if how == "replace":
        parent[key] = draw(st.sampled_from(VALUES))
    elif how == "drop":
        del parent[key]
    elif how == "wrap":
        parent[key] = [parent[key]]
    elif isinstance(parent, dict):
        parent["other" if how == "add" else f"{key}2"] = parent[key]
    else:
        parent.insert(key, parent[key])
    return document


def _dumped(document: Any) -> bytes:
    return json.dumps(document).encode()
