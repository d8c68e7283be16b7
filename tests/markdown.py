"""Reads the project's Markdown pages: fenced blocks, commands in them, links and inline code."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent

LANGUAGES = {"bash", "python", "toml", "c", "diff", "text"}
"""Languages of fenced blocks. The tests run the first two and read the third."""

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\n\Z")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: name of its page.
        line: line number of its first fence.
        language: the word behind the fence.
        text: what is between the fences.
        not_run: why the tests do not run it; empty for a block that they run.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str = ""

    @property
    def commands(self) -> list[list[str]]:
        """Return the words of each command of a `bash` block."""
        text = self.text.replace("\\\n", " ")
        commands = [shlex.split(line, comments=True) for line in text.splitlines()]
        return [[word for word in words if word != "&"] for words in commands if words]


def pages() -> list[str]:
    """Return the names of all pages, relative to the root of the repository."""
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    paths += [ROOT / folder / "README.md" for folder in ("results", "latency_tables")]
    paths.append(ROOT / "tests/benchmarks/README.md")
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def read(page: str) -> str:
    """Return the text of a page."""
    return (ROOT / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in order."""
    text = read(page)
    fenced = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        reason = _NOT_RUN.search(before)
        fenced.append(
            Block(
                page,
                before.count("\n") + 1,
                match[1],
                match[2],
                reason[1] if reason else "",
            )
        )
    return fenced


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def links(page: str) -> list[str]:
    """Return the targets of all links and pictures of a page."""
    return _LINK.findall(prose(page))


def inline_code(page: str) -> list[str]:
    """Return the inline code of a page, each on one line."""
    return [" ".join(code.split()) for code in _INLINE.findall(prose(page))]
