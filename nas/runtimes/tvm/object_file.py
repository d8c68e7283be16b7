"""The names of the functions in an object file (ELF).

TVM lets a program see every function of an object. Among them are two conversions of half precision
with the names of the compiler's own, which they replace in all of the program: `__extendhfsf2`. On
RISC-V the compiler passes their arguments in other registers, so that 1.5 becomes 0. Not every
processor's `objcopy` is installed; this needs none.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

_SYMBOL_TABLE = 2
"""Type of the section that lists symbols."""

_LOCAL = 0
"""Binding of a symbol that no other object sees."""

_HIDDEN = 2
"""Visibility of a symbol that objects of the same program or library see."""


class _Layout(NamedTuple):
    """How files for processors of 32 or 64 bits lay out what they hold, for `struct`.

    Attributes:
        sections: offset and format of the place of the table of sections in the file's header.
        rows: offset and format of the size and the number of its rows.
        section: a row: name, type, flags, address, offset, size, link, and others.
        symbol: a symbol: its name first.
        info, visibility, defined_in: fields of a symbol.
    """

    sections: tuple[int, str]
    rows: tuple[int, str]
    section: str
    symbol: str
    info: int
    visibility: int
    defined_in: int


_LAYOUTS = {
    1: _Layout((32, "I"), (46, "2H"), "10I", "3I2BH", 3, 4, 5),
    2: _Layout((40, "Q"), (58, "2H"), "2I4Q2I2Q", "I2BH2Q", 1, 2, 3),
}
"""By the class of a file, see the ELF specification (System V ABI, chapters 4 and 5)."""


def hide_functions(path: Path, prefix: str) -> None:
    """Put a prefix before all names that an object file defines, and hide them from libraries.

    Raises:
        ValueError: the file is no object file, or has no symbols.
    """
    content = bytearray(path.read_bytes())
    layout = _LAYOUTS.get(content[4]) if content[:4] == b"\x7fELF" else None
    if layout is None:
        raise ValueError(f"{path} is no object file")
    order = "<" if content[5] == 1 else ">"

    def read(place: int, fields: str) -> list[int]:
        return list(struct.unpack_from(order + fields, content, place))

    def write(place: int, fields: str, values: list[int]) -> None:
        struct.pack_into(order + fields, content, place, *values)

    (start,) = read(*layout.sections)
    size, count = read(*layout.rows)
    places = [start + at * size for at in range(count)]
    sections = [read(place, layout.section) for place in places]
    table = next((each for each in sections if each[1] == _SYMBOL_TABLE), None)
    if table is None:
        raise ValueError(f"{path} has no symbols")
    # The names get longer, so that their section moves to the end of the file.
    names_at = table[6]
    _, _, _, _, offset, length, *_ = sections[names_at]
    names = content[offset : offset + length]
    for place in range(table[4], table[4] + table[5], struct.calcsize(order + layout.symbol)):
        symbol = read(place, layout.symbol)
        if symbol[layout.info] >> 4 == _LOCAL or not symbol[layout.defined_in]:
            continue
        name = names[symbol[0] : names.index(0, symbol[0])]
        symbol[0], symbol[layout.visibility] = len(names), _HIDDEN
        names += prefix.encode() + name + b"\0"
        write(place, layout.symbol, symbol)
    sections[names_at][4:6] = len(content), len(names)
    write(places[names_at], layout.section, sections[names_at])
    path.write_bytes(content + names)
