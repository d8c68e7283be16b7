"""Reads what torch.save wrote, without importing or running anything that the file names.

A pickle names classes and functions, and calls them. Here torch's functions that rebuild tensors
are those of this module, mappings of the standard library become dicts, and every other name stands
for a class of `StandIn`s, which do nothing.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from nas.errors import WeightsError, first_line, printable

NO_TORCH_FILE_REMEDY = "Give a .safetensors file, or a state dict that torch.save wrote."

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""What a file of torch before version 1.6 begins with, in a pickle of its own."""

_LEGACY_PROTOCOL = 1001

_STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "QInt32Storage": torch.qint32,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}


class StandIn:
    """What takes the place of an object of a class that is not imported. It does nothing.

    Attributes:
        name: path of the class or function, such as `argparse.Namespace`.
        content: what it was made of: arguments, state and elements.
        items: what was stored in it by key; some classes of settings are mappings.
    """

    name = "an object"

    content: list[Any]
    items: dict[Any, Any]

    def __new__(cls, *arguments: Any, **named: Any) -> StandIn:
        """Make an object of arguments; pickles make objects without `__init__`, too."""
        made = super().__new__(cls)
        made.content, made.items = [*arguments, *named.values()], {}
        return made

    def __call__(self, *arguments: Any) -> StandIn:
        """Return this object as the result of a call."""
        return self

    def __setstate__(self, state: Any) -> None:
        self.content.append(state)

    def append(self, element: Any) -> None:
        """Take an element, as a list does."""
        self.content.append(element)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


def read_torch_file(path: Path, content: bytes) -> Any:
    """Return what torch.save wrote: plain containers, numbers, texts, tensors, and stand-ins.

    Args:
        path: path of the file, for messages.
        content: its content.

    Raises:
        WeightsError: the file is damaged, of another kind, or a TorchScript program.
    """
    try:
        if content[:4] == b"PK\x03\x04":
            loaded = _read_archive(content)
        elif content[:1] == b"\x80":
            loaded = _read_legacy(content)
        else:
            loaded = _Other()
    except Exception as error:
        # Reading of a damaged file can end with nearly any error.
        raise damaged_error(path, error) from None
    if isinstance(loaded, _Other):
        raise WeightsError(f"{path} {loaded.what}.", remedy=loaded.remedy)
    return loaded


def damaged_error(path: Path, error: Exception) -> WeightsError:
    """Return the error for a file that cannot be read to its end, with the reason."""
    reason = printable(first_line(error))[:200].rstrip(". ")
    return WeightsError(f"{path} is damaged or incomplete: {reason}.", remedy="Download it again.")


class _Other(NamedTuple):
    """A file of another kind."""

    what: str = "is neither a safetensors file nor a torch state dict"
    remedy: str = NO_TORCH_FILE_REMEDY


_BIG_ENDIAN = _Other(
    "was written on a machine with another order of bytes",
    "Write it again on a machine like this one: torch.save(torch.load(FILE), NEW_FILE).",
)


def _read_archive(content: bytes) -> Any:
    """Return what is in a file of torch since version 1.6, a zip archive that is not compressed."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    if sum(each.file_size for each in archive.infolist()) > len(content):
        raise ValueError("parts of its archive overlap, or it is compressed")
    for each in archive.infolist():
        # torch can be set to write no checksums, which are zero then; None is checked by nobody.
        each.CRC = each.CRC or None  # type: ignore[assignment]
    pickles = [name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        return _Other()
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in archive.NameToInfo:
        return _Other(
            "holds a TorchScript program, which runs code when it is loaded, and not only weights",
            "If you trust it, write its weights alone: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE).",
        )
    order = f"{folder}byteorder"
    if order in archive.NameToInfo and archive.read(order) == b"big":
        return _BIG_ENDIAN

    @cache
    def stored(key: str, count: int, dtype: torch.dtype) -> bytearray:
        return bytearray(archive.read(f"{folder}data/{key}"))

    return _Unpickler(io.BytesIO(archive.read(pickles[0])), stored).load()


def _read_legacy(content: bytes) -> Any:
    """Return what is in a file of torch before version 1.6: some pickles, and the storages."""
    file = io.BytesIO(content)
    storages: dict[str, bytearray] = {}
    counts: dict[str, int] = {}

    def stored(key: str, count: int, dtype: torch.dtype) -> bytearray:
        size = count * dtype.itemsize
        if size > len(content):
            raise ValueError("a storage ends early")
        counts[key] = count
        return storages.setdefault(key, bytearray(size))

    def load() -> Any:
        return _Unpickler(file, stored).load()

    if load() != _LEGACY_MAGIC:
        return _Other("is a pickle, but not one that torch.save wrote")
    if load() != _LEGACY_PROTOCOL:
        raise ValueError("the version of its format is not known")
    system = load()
    if isinstance(system, dict) and system.get("little_endian") is False:
        return _BIG_ENDIAN
    loaded = load()
    for key in load():
        # The tensors that were made share the memory into which their values are read now.
        if file.read(8) != struct.pack("<q", counts[key]) or (
            file.readinto(storages[key]) != len(storages[key])
        ):
            raise ValueError("a storage ends early")
    return loaded


class _Storage(NamedTuple):
    """Values that tensors share: their dtype and their bytes."""

    dtype: torch.dtype
    content: memoryview


class _Unpickler(pickle._Unpickler):
    """Reads a pickle, see the module.

    It is Python's own reader that is written in Python: that in C makes room for as many objects as
    a damaged or hostile file numbers, which may be more than the memory.

    Args:
        file: the pickle is read from its position on, to its end.
        stored: returns the bytes of a storage from its key, its number of values and their dtype.
    """

    def __init__(
        self, file: BinaryIO, stored: Callable[[str, int, torch.dtype], bytearray]
    ) -> None:
        super().__init__(file, encoding="latin1")
        self._stored = stored

    def find_class(self, module: str, name: str) -> Any:
        """Return what takes the place of a class, function or constant."""
        path = f"{module}.{name}"
        if module.startswith("torch") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        return _KNOWN.get(path) or type("StandIn", (StandIn,), {"name": path})

    def persistent_load(self, identifier: Any) -> Any:
        """Return a storage, or the class of a module, which a file can store with its source."""
        match identifier:
            case "storage", torch.dtype() as dtype, str(key), _, int(count), *view:
                content = memoryview(self._stored(key, count, dtype))
                # Before version 1.6, a view has a key of its own, an offset and a number of values.
                offset = view[0][1] if view and view[0] else 0
                return _Storage(dtype, content[offset * dtype.itemsize :])
            case "module", kind, *_:
                return kind
        raise ValueError("a storage is not known")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *others: Any) -> Tensor:
    """Return a tensor, which shares its values with its storage.

    Raises an error of torch for one that reaches beyond its storage.
    """
    if not isinstance(storage, _Storage):
        raise ValueError("a storage is missing")
    dtype = next((each for each in others if isinstance(each, torch.dtype)), storage.dtype)
    if not math.prod(size):
        return torch.empty(size, dtype=dtype)
    values = torch.frombuffer(storage.content, dtype=dtype)
    return values.as_strided(size, stride, offset)


def _first(tensor: Any, *_: Any) -> Any:
    return tensor


def _of_type(rebuild: Callable[..., Any], _: Any, arguments: tuple[Any, ...], *__: Any) -> Any:
    """Return a tensor of a subclass or with attributes, as the function inside rebuilds it."""
    return rebuild(*arguments)


class _Mapping(dict[Any, Any]):
    """A mapping of the standard library, without its attributes."""

    def __init__(self, content: Any = ()) -> None:
        super().__init__(content if isinstance(content, list | dict) else ())

    def __setstate__(self, state: Any) -> None:
        pass


_KNOWN: dict[str, Any] = {
    "collections.Counter": _Mapping,
    "collections.OrderedDict": _Mapping,
    "collections.defaultdict": _Mapping,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    **{str(each): each for each in vars(torch).values() if isinstance(each, torch.dtype)},
}
"""What takes the place of classes, functions and constants by their paths."""
