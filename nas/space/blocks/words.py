"""Choices among operators, which a table gives as words."""

from __future__ import annotations

from nas.errors import SpaceError


def check_word(key: str, word: str, known: tuple[str, ...]) -> None:
    """Raises SpaceError for a word that the choice `key` does not know."""
    if word not in known:
        raise SpaceError(f"{key} is {word!r}.", remedy=f"Use one of {', '.join(known)}.")
