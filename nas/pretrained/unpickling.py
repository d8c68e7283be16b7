"""Interprets pickles without importing or calling anything that they name.

A pickle is a program for a small machine with a stack, which imports and calls what it names. Here
such a program runs on Python's machine with other steps: names are not imported, and calls make
stand-ins.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_STEPS = 1_000_000
"""Longest pickle that is read: a training checkpoint of 1,000 tensors takes 100,000 steps."""

MAX_NAME_CHARACTERS = 1000
"""Longest name of a class or function."""


class StandIn:
    """What takes the place of an object that is no plain container. It does nothing.

    Attributes:
        name: path of the class or function, such as `argparse.Namespace`.
        content: what it was made of: arguments, state and elements.
        items: what was stored in it by key; some classes of settings are mappings.
    """

    __slots__ = ("content", "items", "name")

    def __init__(self, name: str, *content: Any) -> None:
        self.name = name
        self.content = list(content)
        self.items: dict[Any, Any] = {}

    def append(self, element: Any) -> None:
        """Take an element, as a list does."""
        self.content.append(element)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


@dataclass(frozen=True, eq=False)
class Global:
    """The name of a class, function or constant, which is not imported."""

    name: str


_PythonMachine: Any = pickle._Unpickler
"""The machine of the standard library that is written in Python."""


class Machine(_PythonMachine):
    """Runs one pickle.

    Sets become lists, so that nothing is hashed; keys that are no texts or small numbers become
    objects without content. The machine that is written in C is no base: it enlarges its memo as
    the file says. The time and the memory of a run grow with the size of the pickle only.

    Args:
        file: the pickle is read from its position on, to its end.
        call: returns what a call makes, from the name of the class or function and the arguments.
        persistent: returns an object that is stored outside of the pickle, from its identifier.
    """

    def __init__(
        self,
        file: BinaryIO,
        call: Callable[[str, tuple[Any, ...]], Any],
        persistent: Callable[[Any], Any],
    ) -> None:
        super().__init__(file, encoding="latin1")
        self.call = call
        self.persistent_load = persistent
        self.dispatch = _Steps(_STEPS)

    def run(self) -> Any:
        """Return the object that the pickle makes. Raises nearly anything for a damaged one."""
        return self.load()

    def find_class(self, module: str, name: str) -> Global:
        """Return the name of what a pickle would import."""
        if len(module) + len(name) > MAX_NAME_CHARACTERS:
            raise ValueError("the name of a class is too long")
        return Global(f"{module}.{name}")

    def _instantiate(self, called: Any, arguments: Any) -> None:
        """Put on the stack what a call makes."""
        arguments = tuple(arguments)
        if not isinstance(called, Global):
            self.stack.append(StandIn("an object that is called", called, arguments))
        elif called.name not in _MAPPINGS:
            self.stack.append(self.call(called.name, arguments))
        else:
            pairs = arguments[0] if arguments and type(arguments[0]) is list else []
            self.dispatch.spend(len(pairs))
            self.stack.append({_key(key): value for key, value in pairs})

    def _reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        self._instantiate(called, of(tuple, arguments))

    def _new_with_names(self) -> None:
        named = self.stack.pop()
        self._reduce()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].content.append(named)

    def _build(self) -> None:
        """Take the state of an object. That of a mapping says nothing of its items."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].content.append(state)

    def _dict(self) -> None:
        elements = self.pop_mark()
        self.stack.append({})
        self._store(elements)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._store([key, value])

    def _set_items(self) -> None:
        self._store(self.pop_mark())

    def _store(self, elements: list[Any]) -> None:
        for key, value in zip(elements[::2], elements[1::2], strict=True):
            self.stack[-1][_key(key)] = value


class _Steps(dict[int, Callable[[Machine], None]]):
    """The steps of a machine by opcode, which counts how many are done."""

    left = MAX_STEPS

    def __getitem__(self, opcode: int) -> Callable[[Machine], None]:
        self.spend(1)
        return super().__getitem__(opcode)

    def spend(self, steps: int) -> None:
        """Count steps, among them elements that are copied. Raises ValueError for too many."""
        self.left -= steps
        if self.left < 0:
            raise ValueError("it holds too many objects")


_REFUSED = (
    *(pickle.EXT1, pickle.EXT2, pickle.EXT4),
    *(pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
)
"""Steps that would call what the process registered, or take as much memory as the file says."""

_STEPS: dict[int, Callable[[Machine], None]] = {
    opcode: step
    for opcode, step in _PythonMachine.dispatch.items()
    if bytes([opcode]) not in _REFUSED
} | {
    opcode[0]: step
    for opcode, step in (
        (pickle.REDUCE, Machine._reduce),
        (pickle.NEWOBJ, Machine._reduce),
        (pickle.NEWOBJ_EX, Machine._new_with_names),
        (pickle.BUILD, Machine._build),
        (pickle.ADDITEMS, Machine.load_appends),
        (pickle.EMPTY_SET, Machine.load_empty_list),
        (pickle.FROZENSET, Machine.load_list),
        (pickle.DICT, Machine._dict),
        (pickle.SETITEM, Machine._set_item),
        (pickle.SETITEMS, Machine._set_items),
    )
}

_MAPPINGS = frozenset(["collections.OrderedDict", "collections.defaultdict", "collections.Counter"])
"""Mappings of the standard library; they become dicts."""


def of(kind: type, value: Any) -> Any:
    """Return a value of exactly this type. Raises ValueError for any other."""
    if type(value) is not kind:
        raise ValueError(f"a {kind.__name__} is missing")
    return value


def _key(key: Any) -> Any:
    """Return a text or small number, whose hashes no file can make collide, or a new object."""
    if type(key) is str or (type(key) is int and key.bit_length() < 60):
        return key
    return object()
