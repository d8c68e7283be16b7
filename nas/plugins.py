"""Plug-in points: what installed packages add by an entry point, found by its name.

Runtimes (`nas.runtimes`), sources of images (`nas.sources`) and export formats (`nas.formats`) are
named in this way, our own as well:

    [project.entry-points."nas.formats"]
    my-format = "my_package:MyFormat"
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from nas.errors import RequestError, first_line


class PlugInPoint:
    """The plug-ins of one entry point group.

    Args:
        group: name of the entry point group.
        what: what a plug-in is in messages, such as `runtime`.
        is_one: function that tells whether what was loaded can be used.
        expected: what it should be, for the message if it cannot.
    """

    def __init__(self, group: str, what: str, is_one: Callable[[Any], bool], expected: str) -> None:
        self.group, self._what = group, what
        self._is_one, self._expected = is_one, expected
        self._loaded: dict[str, Any] = {}

    @cached_property
    def _entry_points(self) -> dict[str, EntryPoint]:
        return {each.name: each for each in entry_points(group=self.group)}

    @property
    def names(self) -> list[str]:
        """The names of all plug-ins, whether they load or not, in alphabetical order."""
        return sorted(self._entry_points)

    def load(self, name: str) -> Any:
        """Return a plug-in; its module is imported at the first call.

        Raises:
            RequestError: no installed package has a plug-in of this name, or it does not load.
        """
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def load_all(self) -> dict[str, Any]:
        """Return all plug-ins that load, by name; a warning names each of the others."""
        loaded = {}
        for name in self.names:
            try:
                loaded[name] = self.load(name)
            except RequestError as error:
                warnings.warn(str(error), stacklevel=3)
        return loaded

    def _load(self, name: str) -> Any:
        entry_point = self._entry_points.get(name)
        if entry_point is None:
            raise RequestError(
                f"There is no {self._what} '{name}'.",
                remedy=f"Allowed: {', '.join(self.names)}. A package adds one by the entry point "
                f"group '{self.group}'.",
            )
        title = self._what.capitalize()
        try:
            loaded = entry_point.load()
        # The module of another package raises anything, and may load native code that does.
        except (Exception, SystemExit) as error:
            raise RequestError(
                f"{title} '{name}' does not load from '{entry_point.value}': {first_line(error)}.",
                remedy="Install its package again.",
            ) from error
        if not self._is_one(loaded):
            raise RequestError(
                f"{title} '{name}': '{entry_point.value}' is no {self._expected}.",
                remedy="Correct the entry point of its package.",
            )
        return loaded


def is_subclass_of(base: type) -> Callable[[Any], bool]:
    """Return a function that tells whether something is a subclass of a class."""
    return lambda loaded: isinstance(loaded, type) and issubclass(loaded, base)
