"""Reads what torch.save wrote, without running code of the file.

Calls of torch's functions that rebuild tensors become `StoredTensor` records, which are checked
before torch makes tensors of them. Every other object becomes a `StandIn`.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nas.errors import WeightsError, first_line, printable
from nas.pretrained.unpickling import Global, Machine, StandIn, of

MAX_ELEMENTS = 1 << 30
"""Largest tensor that is read, which can be larger than its storage if it was expanded."""

MAX_DIMENSIONS = 16
"""Most dimensions of a tensor that is read; weights have four."""

DAMAGED_REMEDY = "Download it again."

NO_TORCH_FILE_REMEDY = "Give a .safetensors file, or a state dict that torch.save wrote."

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""What a file of torch before version 1.6 begins with, in a pickle of its own."""

_LEGACY_PROTOCOL = 1001

_DTYPES = {str(each): each for each in vars(torch).values() if isinstance(each, torch.dtype)}

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


@dataclass(eq=False)
class _Storage:
    """Values that tensors share: their dtype, how many they are, and where they are.

    Attributes:
        dtype: type of the values.
        count: number of values.
        content: their bytes; None as long as they have not been read.
    """

    dtype: torch.dtype
    count: int
    content: memoryview | None = None


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in a file: a part of a storage. All are checked when it is read."""

    storage: _Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def read(self) -> Tensor:
        """Return the tensor, which shares its values with the content of the file.

        Raises ValueError for one that reaches beyond its storage, and RuntimeError for a type of
        values that torch cannot read.
        """
        content, item = self.storage.content, self.dtype.itemsize
        if len(self.size) != len(self.stride) or len(self.size) > MAX_DIMENSIONS:
            raise ValueError(f"a tensor has {len(self.size)} dimensions")
        numbers = (self.offset, *self.size, *self.stride)
        if any(type(each) is not int or each < 0 for each in numbers):
            raise ValueError("the position of a tensor is not a number")
        elements = math.prod(self.size)
        last = self.offset + sum(
            (n - 1) * step for n, step in zip(self.size, self.stride, strict=True)
        )
        if content is None or elements > MAX_ELEMENTS or (last + 1) * item > len(content):
            raise ValueError("a tensor is larger than its storage")
        if not elements:
            return torch.empty(self.size, dtype=self.dtype)
        values = torch.frombuffer(content, dtype=self.dtype, count=len(content) // item)
        return values.as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True, eq=False)
class UnusableTensor:
    """A tensor that is not read; `kind` says why: `quantised` or `sparse`."""

    kind: str


@dataclass(frozen=True, eq=False)
class _View:
    """A storage, or the part of one that begins at `offset`, as values of a type."""

    storage: _Storage
    dtype: torch.dtype
    offset: int


def read_torch_file(path: Path, content: bytes) -> Any:
    """Return what torch.save wrote: plain containers, numbers, texts, and the records above.

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
        reason = printable(first_line(error))[:200].rstrip(". ")
        raise WeightsError(
            f"{path} is damaged or incomplete: {reason}.", remedy=DAMAGED_REMEDY
        ) from None
    if isinstance(loaded, _Other):
        raise WeightsError(f"{path} {loaded.what}.", remedy=loaded.remedy)
    return loaded


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
    if order in archive.NameToInfo and _stored(archive, order, content) == b"big":
        return _BIG_ENDIAN
    storages: dict[str, _Storage] = {}

    def persistent(identifier: Any) -> _View | StandIn:
        match _storage_of(identifier):
            case None:
                return StandIn("a reference to another object")
            case dtype, key, count, _:
                pass
        if key not in storages:
            values = _stored(archive, f"{folder}data/{key}", content)
            if len(values) != count * dtype.itemsize:
                raise ValueError(f"a storage has {len(values)} bytes")
            storages[key] = _Storage(dtype, count, values)
        return _View(storages[key], dtype, 0)

    file = io.BytesIO(_stored(archive, pickles[0], content))
    return Machine(file, _made, persistent).run()


def _stored(archive: zipfile.ZipFile, name: str, content: bytes) -> memoryview:
    """Return a file in an archive without copying it."""
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError("its archive is compressed")
    header = content[entry.header_offset : entry.header_offset + 30]
    lengths = struct.unpack("<HH", header[26:30])
    start = entry.header_offset + len(header) + sum(lengths)
    data = memoryview(content)[start : start + entry.file_size]
    if len(data) != entry.file_size:
        raise ValueError("its archive ends early")
    # torch can be set to write no checksums, which are zero then.
    if entry.CRC not in (0, zlib.crc32(data)):
        raise ValueError(f"the checksum of {name} does not match its content")
    return data


def _read_legacy(content: bytes) -> Any:
    """Return what is in a file of torch before version 1.6: some pickles, and the storages."""
    file = io.BytesIO(content)

    def run() -> Any:
        return Machine(file, StandIn, lambda identifier: StandIn("another object")).run()

    if run() != _LEGACY_MAGIC:
        return _Other("is a pickle, but not one that torch.save wrote")
    if run() != _LEGACY_PROTOCOL:
        raise ValueError("the version of its format is not known")
    system = run()
    if isinstance(system, dict) and system.get("little_endian") is False:
        return _BIG_ENDIAN
    storages: dict[str, _Storage] = {}

    def persistent(identifier: Any) -> _View | StandIn:
        match _storage_of(identifier):
            case None:
                return StandIn("another object")
            case dtype, key, count, offset:
                stored = storages.setdefault(key, _Storage(dtype, count))
                return _View(stored, dtype, offset)

    loaded = Machine(file, _made, persistent).run()
    for key in of(list, run()):
        stored = storages[of(str, key)]
        (count,) = struct.unpack("<q", file.read(8))
        start = file.tell()
        stored.content = memoryview(content)[start : start + count * stored.dtype.itemsize]
        if count != stored.count or len(stored.content) != count * stored.dtype.itemsize:
            raise ValueError("a storage ends early")
        file.seek(start + len(stored.content))
    return loaded


class _StorageId(NamedTuple):
    """How a pickle names a storage: its type, key, number of values, and where a view begins."""

    dtype: torch.dtype
    key: str
    values: int
    offset: int


def _storage_of(identifier: Any) -> _StorageId | None:
    """Return the storage that an identifier in a pickle means; None for other objects."""
    match identifier:
        case "storage", Global(name), str(key), _, int(count), *view:
            dtype = _STORAGE_DTYPES.get(name.rpartition(".")[2])
            if dtype is None or not name.startswith("torch.") or count < 0:
                raise ValueError(f"the storage {name} is not known")
            # Before version 1.6, a view has a key of its own, an offset and a number of values.
            offset = view[0][1] if view and type(view[0]) is tuple else 0
            return _StorageId(dtype, key, count, of(int, offset))
    return None


def _made(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return what a call makes of a tensor, or the stand-in of another object."""
    if name == "torch._tensor._rebuild_from_type_v2" and isinstance(arguments[0], Global):
        # Tensors of a subclass or with attributes: the function that rebuilds them is inside.
        name, arguments = arguments[0].name, of(tuple, arguments[2])
    if name in _TENSORS:
        view, offset, size, stride = arguments[:4]
        if not isinstance(view, _View):
            raise ValueError("a storage is missing")
        dtype = _DTYPES[arguments[6].name] if name.endswith("_v3") else view.dtype
        offset = view.offset + of(int, offset)
        return StoredTensor(view.storage, dtype, offset, of(tuple, size), of(tuple, stride))
    if name in _WRAPPERS:
        return arguments[0]
    if name in _UNUSABLE:
        return UnusableTensor(_UNUSABLE[name])
    return StandIn(name, arguments)


_TENSORS = frozenset(f"torch._utils._rebuild_tensor{version}" for version in ("", "_v2", "_v3"))
"""Functions that make a tensor of a storage, an offset, a size, a stride, and more."""

_WRAPPERS = frozenset(
    [
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._utils._rebuild_device_tensor_from_cpu_tensor",
    ]
)
"""Functions whose first argument is the tensor that they return in another form."""

_UNUSABLE = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_sparse_tensor": "sparse",
}
"""Functions that make tensors which are not read, and their kinds."""
