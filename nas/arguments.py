"""Checks the arguments of public functions against their annotations.

A wrong type or value raises a `RequestError` with one sentence, where the argument is given, and
not a traceback of another kind from deep inside the package.
"""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import functools
import inspect
import math
import numbers
import os
import types
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from nas.errors import RequestError
from nas.files.paths import expanded

FunctionType = TypeVar("FunctionType", bound=Callable[..., Any])

_PLAIN: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    None: ("None", lambda value: value is None),
    type(None): ("None", lambda value: value is None),
    bool: ("True or False", lambda value: isinstance(value, bool) or _is_numpy_bool(value)),
    int: ("a whole number", lambda value: _is_number(value, numbers.Integral)),
    float: ("a finite number", lambda value: _is_finite(value)),
    str: ("a text", lambda value: isinstance(value, str)),
    Path: ("a path", lambda value: isinstance(value, os.PathLike)),
}
"""How simple types are called, and what belongs to them."""


_field_hints: dict[type, dict[str, Any]] = {}
"""The annotations of the dataclasses whose fields were checked."""


class AtLeast(NamedTuple):
    """The smallest number of an annotation: `Annotated[int, AtLeast(1)]`."""

    smallest: float


Seed = Annotated[int, AtLeast(0)]
"""A seed: numpy takes no negative one."""


@overload
def checked(function: FunctionType, /) -> FunctionType: ...


@overload
def checked(
    *, error: type[RequestError] = RequestError, **lazy: str
) -> Callable[[FunctionType], FunctionType]: ...


def checked(
    function: Callable[..., Any] | None = None,
    /,
    *,
    error: type[RequestError] = RequestError,
    **lazy: str,
) -> Any:
    """Decorate a function so that its arguments are checked against its annotations.

    Args:
        function: the function, or a method.
        error: the class of the errors.
        lazy: the module of each class in the annotations that the function's own module imports
            for type checkers only, by the name of the class.
    """
    if function is None:
        return functools.partial(checked, error=error, **lazy)
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:
        names = {name: getattr(import_module(module), name) for name, module in lazy.items()}
        return get_type_hints(function, localns=names, include_extras=True)

    # A constructor is known by the name of its class.
    what = function.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as problem:
            raise error(
                f"{what}: {problem}.",
                remedy=f"Its arguments are {', '.join(signature.parameters)}.",
            ) from None
        for name, value in bound.arguments.items():
            if isinstance(value, str | Path) and name in hints() and _may_be_path(hints()[name]):
                bound.arguments[name] = expanded(value)
            kind = signature.parameters[name].kind
            values = [(name, value)]
            if kind is inspect.Parameter.VAR_POSITIONAL:
                values = [(name, each) for each in value]
            elif kind is inspect.Parameter.VAR_KEYWORD:
                values = list(value.items())
            if name in hints():
                for key, each in values:
                    require(each, hints()[name], f"{what}: {key}", error)
        return function(*bound.args, **bound.kwargs)

    return wrapper


def check_fields(instance: Any, error: type[RequestError] = RequestError) -> None:
    """Check the fields of a dataclass against their annotations.

    Raises `error` for a field of a wrong type or value.
    """
    kind = type(instance)
    if kind not in _field_hints:
        hints = get_type_hints(kind, include_extras=True)
        _field_hints[kind] = {each.name: hints[each.name] for each in dataclasses.fields(kind)}
    for name, annotation in _field_hints[kind].items():
        require(getattr(instance, name), annotation, f"{kind.__name__}: {name}", error)


def require(
    value: Any, annotation: Any, what: str, error: type[RequestError] = RequestError
) -> None:
    """Raise `error` if a value does not belong to an annotation.

    Args:
        value: any value.
        annotation: a type as it stands in a signature.
        what: start of the message: "run_search: trials".
        error: class of the error.
    """
    if not _belongs(value, annotation):
        raise error(f"{what} is {_shown(value)}.", remedy=f"Give {describe(annotation)}.")


def describe(annotation: Any) -> str:
    """Return what belongs to an annotation, in words: "a whole number or None"."""
    if annotation in _PLAIN:
        return _PLAIN[annotation][0]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [f" of at least {each.smallest:g}" for each in _bounds(arguments)]
        return "".join([describe(arguments[0]), *bounds])
    if origin is Literal:
        return _alternatives([repr(each) for each in arguments])
    if origin in (Union, types.UnionType):
        return _alternatives(list(dict.fromkeys(describe(each) for each in arguments)))
    if origin is abc.Callable or annotation is abc.Callable:
        return "a function"
    if origin is type:
        return "a class"
    if _is_mapping(origin or annotation):
        parts = f" from {describe(arguments[0])} to {describe(arguments[1])}" if arguments else ""
        return f"a mapping{parts}"
    if _is_collection(origin or annotation):
        items = [each for each in arguments if each is not Ellipsis]
        return f"a list whose items are each {describe(items[0])}" if items else "a list"
    name = getattr(origin or annotation, "__name__", str(annotation))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _may_be_path(annotation: Any) -> bool:
    """Return whether an annotation is `Path`, or has it among others."""
    return annotation is Path or any(map(_may_be_path, get_args(annotation)))


def _belongs(value: Any, annotation: Any) -> bool:
    if annotation is Any or isinstance(annotation, TypeVar | str):
        return True
    if annotation in _PLAIN:
        return _PLAIN[annotation][1](value)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _belongs(value, arguments[0]) and all(
            value >= bound.smallest for bound in _bounds(arguments)
        )
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if origin in (Union, types.UnionType):
        return any(_belongs(value, each) for each in arguments)
    kind = origin or annotation
    if kind is abc.Callable:
        return callable(value)
    if _is_mapping(kind):
        return isinstance(value, Mapping) and all(
            _belongs(key, arguments[0]) and _belongs(item, arguments[1])
            for key, item in (value.items() if arguments else ())
        )
    if _is_collection(kind):
        return _is_collection_of(value, kind, [each for each in arguments if each is not Ellipsis])
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(kind) if not name.startswith("_"))
    return isinstance(value, kind)


def _bounds(arguments: tuple[Any, ...]) -> list[AtLeast]:
    return [each for each in arguments[1:] if isinstance(each, AtLeast)]


def _is_collection_of(value: Any, kind: Any, items: list[Any]) -> bool:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, abc.Iterable):
        return False
    if not isinstance(value, list | tuple | set | frozenset):
        return kind is abc.Iterable or isinstance(value, kind)  # items of an iterator come once
    return not items or all(_belongs(each, items[0]) for each in value)


def _is_mapping(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Mapping)


def _is_collection(kind: Any) -> bool:
    return kind in (list, tuple, set, frozenset, abc.Sequence, abc.Iterable, abc.Collection)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value, numbers.Real) and math.isfinite(value)


def _is_numpy_bool(value: Any) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")


def _shown(value: Any) -> str:
    """Return a value, or its type where the value's text says little."""
    from nas.files.documents import shortened  # commands start without pydantic, which it imports

    is_plain = value is None or isinstance(
        value, str | bytes | numbers.Number | list | tuple | dict
    )
    return shortened(value) if is_plain else f"an object of the type {type(value).__name__}"


def _alternatives(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
