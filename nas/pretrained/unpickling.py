"""Interprets pickles without importing or calling anything that they name.

A pickle is a program for a small machine with a stack, which imports and calls what it names. Here
such a program runs on a machine that makes plain containers itself and asks its owner for the rest.
Python's own unpickler is no base for that, even with its names restricted: it hashes nested tuples
and enlarges its memo as the file says, so that a hostile file ends or blocks the process.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass(frozen=True, eq=False)
class Global:
    """The name of a class, function or constant, which is not imported."""

    name: str


@dataclass
class Machine:
    """Runs one pickle. Its steps are those of `pickletools.opcodes`, which documents them.

    Sets become lists, so that nothing is hashed; keys that are no texts or small numbers become
    objects without content. The time and the memory of a run grow with the size of the pickle only.

    Args:
        file: the pickle is read from its position on, to its end.
        call: returns what a call makes, from the name of the class or function and the arguments.
        persistent: returns an object that is stored outside of the pickle, from its identifier.
    """

    file: BinaryIO
    call: Callable[[str, tuple[Any, ...]], Any]
    persistent: Callable[[Any], Any]
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    steps: int = 0

    def run(self) -> Any:
        """Return the object that the pickle makes. Raises nearly anything for a damaged one."""
        argument: Any
        for opcode, argument, _ in pickletools.genops(self.file):
            self._spend(1)
            name = opcode.name
            if name in _CONSTANTS:
                self.stack.append(argument)
            elif name in _NEW:
                self.stack.append(_NEW[name]())
            elif name in _PUTS:
                self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
            elif name in _GETS:
                self.stack.append(self.memo[argument])
            elif name == "STOP":
                return self._taken()
            else:
                getattr(self, f"_{name.lower()}")(argument)
        raise ValueError("it has no end")

    def _spend(self, steps: int) -> None:
        """Count steps, among them elements that are copied. Raises ValueError for too many."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise ValueError("it holds too many objects")

    def _taken(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("an object is missing")
        return value

    def _from_mark(self) -> list[Any]:
        """Return the elements above the last mark, and remove them and the mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        elements = self.stack[at + 1 :]
        del self.stack[at:]
        return elements

    def _proto(self, _: int) -> None:
        pass

    def _frame(self, _: int) -> None:
        pass

    def _pop(self, _: None) -> None:
        self.stack.pop()

    def _pop_mark(self, _: None) -> None:
        self._from_mark()

    def _dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    def _list(self, _: None) -> None:
        self.stack.append(self._from_mark())

    _frozenset = _list

    def _tuple(self, _: None) -> None:
        self.stack.append(tuple(self._from_mark()))

    def _tuple1(self, _: None) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self, _: None) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: None) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _dict(self, _: None) -> None:
        elements = self._from_mark()
        self.stack.append({})
        self._store(elements)

    def _append(self, _: None) -> None:
        self._extend([self._taken()])

    def _appends(self, _: None) -> None:
        self._extend(self._from_mark())

    _additems = _appends

    def _extend(self, elements: list[Any]) -> None:
        target = self.stack[-1]
        (target.content if isinstance(target, StandIn) else of(list, target)).extend(elements)

    def _setitem(self, _: None) -> None:
        value, key = self._taken(), self._taken()
        self._store([key, value])

    def _setitems(self, _: None) -> None:
        self._store(self._from_mark())

    def _store(self, elements: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, StandIn) else of(dict, target)
        for key, value in zip(elements[::2], elements[1::2], strict=True):
            items[_key(key)] = value

    def _global(self, argument: str) -> None:
        self._name(*argument.split(" ", 1))

    def _stack_global(self, _: None) -> None:
        name, module = self._taken(), self._taken()
        self._name(of(str, module), of(str, name))

    def _name(self, module: str, name: str) -> None:
        if len(module) + len(name) > MAX_NAME_CHARACTERS:
            raise ValueError("the name of a class is too long")
        self.stack.append(Global(f"{module}.{name}"))

    def _ext1(self, code: int) -> None:
        self.stack.append(Global(f"the registered class {code}"))

    _ext2 = _ext4 = _ext1

    def _inst(self, argument: str) -> None:
        arguments = tuple(self._from_mark())
        self._global(argument)
        self._call(self._taken(), arguments)

    def _obj(self, _: None) -> None:
        called, *arguments = self._from_mark()
        self._call(called, tuple(arguments))

    def _reduce(self, _: None) -> None:
        arguments, called = self._taken(), self._taken()
        self._call(called, arguments)

    _newobj = _reduce

    def _newobj_ex(self, _: None) -> None:
        named, arguments, called = self._taken(), self._taken(), self._taken()
        self._call(called, arguments)
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].content.append(named)

    def _call(self, called: Any, arguments: Any) -> None:
        of(tuple, arguments)
        if not isinstance(called, Global):
            self.stack.append(StandIn("an object that is called", called, arguments))
        elif called.name not in _MAPPINGS:
            self.stack.append(self.call(called.name, arguments))
        else:
            pairs = arguments[0] if arguments and type(arguments[0]) is list else []
            self._spend(len(pairs))
            self.stack.append({_key(key): value for key, value in pairs})

    def _build(self, _: None) -> None:
        """Take the state of an object. That of a mapping says nothing of its items."""
        state = self._taken()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].content.append(state)

    def _binpersid(self, _: None) -> None:
        self._persid(self._taken())

    def _persid(self, identifier: Any) -> None:
        self.stack.append(self.persistent(identifier))


_MARK = object()
"""What stands on the stack below the elements of a container."""

_CONSTANTS = frozenset(
    each.name
    for each in pickletools.opcodes
    if each.arg and not each.stack_before and each.stack_after not in ([], [pickletools.anyobject])
)
"""Steps whose argument is the value that they make."""

_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
"""Steps without an argument that put something on the stack."""

_PUTS = frozenset(["PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"])
_GETS = frozenset(["GET", "BINGET", "LONG_BINGET"])

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
