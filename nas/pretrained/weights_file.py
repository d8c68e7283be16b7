"""Reads the tensors of a file of weights: safetensors, or a torch state dict.

No file is unpickled without restriction: torch reads state dicts with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from nas.errors import WeightsError, first_line, printable
from nas.files.documents import read_bytes, shortened, shortened_text

MAX_FILE_BYTES = 1 << 30
"""Largest file that is read: a training checkpoint of EfficientNet-Lite4 has 200 MB."""

_ENTRIES = (
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "model",
    "state_dict",
    "model_state_dict",
)
"""Entries of training checkpoints that hold a state dict, in the order of preference.

Averaged weights (EMA) go first, because published accuracies are theirs.
"""

_QUANTISED_NAMES = re.compile(r"(^|\.)((scale|zero_point)$|(_packed_params|weight_fake_quant)\b)")
"""Names of tensors in a quantised state dict of torch."""

_FOREIGN = {
    b"<": "it is a web page (HTML), which a download from a wrong address leaves",
    b"version https://git-lfs": "it is a pointer of Git LFS, not the file that it stands for",
    b"\x89HDF": "it is an HDF5 file of Keras",
    b"\x1f\x8b": "it is compressed with gzip",
}
"""What files of other kinds begin with, and what they are."""

_REMEDY = "Give a .safetensors file, or a state dict that torch.save wrote."


class WeightsFile(NamedTuple):
    """The content of a file of weights.

    Attributes:
        path: path of the file.
        sha256: SHA-256 of the file, in hexadecimal digits.
        file_bytes: size of the file.
        tensors: floating-point tensors by name. Counters, which are single integers, are left out.
        is_ordered: whether the tensors stand in the order in which their modules were defined.
            Safetensors sorts them by name.
        entry: entry of the training checkpoint that holds the tensors; empty if there is none.
        metadata: the texts in the header of a safetensors file.
    """

    path: Path
    sha256: str
    file_bytes: int
    tensors: dict[str, Tensor]
    is_ordered: bool
    entry: str
    metadata: dict[str, str]


def read_weights_file(path: Path) -> WeightsFile:
    """Return the tensors of a file.

    Raises WeightsError for a file that cannot be read, is of another kind or damaged, or holds
    other objects than tensors, or quantised ones.
    """
    try:
        content = read_bytes(path, MAX_FILE_BYTES)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.", remedy=_REMEDY) from None
    if not content:
        raise WeightsError(f"{path} is empty.", remedy="Download it again.")
    for start, what in _FOREIGN.items():
        if content[:64].lstrip().startswith(start):
            raise WeightsError(f"{path} holds no weights: {what}.", remedy=_REMEDY)
    is_safetensors = content[8:9] == b"{" or path.suffix == ".safetensors"
    loaded = _safetensors(path, content) if is_safetensors else _state_dict(path, content)
    entry, named = _unwrapped(path, loaded)
    return WeightsFile(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        file_bytes=len(content),
        tensors=_float_tensors(path, named),
        is_ordered=not is_safetensors,
        entry=entry,
        metadata=_metadata(content) if is_safetensors else {},
    )


def _safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} is damaged or incomplete: {_reason(error)}.",
            remedy="Download it again.",
        ) from None


def _reason(error: Exception) -> str:
    return printable(first_line(error))[:200].rstrip(". ")


def _metadata(content: bytes) -> dict[str, str]:
    """Return the texts in the header of a safetensors file that was read without an error."""
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return dict(header.get("__metadata__") or {})


def _state_dict(path: Path, content: bytes) -> Any:
    """Return what torch.save wrote, which is only made of tensors and plain containers."""
    try:
        with warnings.catch_warnings():
            # torch warns of storages and archives of old versions, which is no news for the user.
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # The unpickler of a damaged file can raise anything.
        text = str(error)
        foreign = re.search(r"GLOBAL ([\w.]+)", text)
        if foreign or "TorchScript" in text:
            what = f"{foreign[1]} objects" if foreign else "a TorchScript program"
            raise WeightsError(
                f"{path} holds {what}, which could run code when loaded, and not only weights.",
                remedy="If you trust it, write its weights alone: torch.save(model.state_dict(), "
                "FILE).",
            ) from None
        if content[:2] == b"PK" or content[:1] == b"\x80":
            raise WeightsError(
                f"{path} is damaged or incomplete: {_reason(error)}.",
                remedy="Download it again.",
            ) from None
        raise WeightsError(
            f"{path} is neither a safetensors file nor a torch state dict.", remedy=_REMEDY
        ) from None


def _unwrapped(path: Path, loaded: Any) -> tuple[str, Mapping[str, Any]]:
    """Return the state dict in what was loaded, and the entry that it is in."""
    entry = ""
    if isinstance(loaded, Mapping):
        for name in _ENTRIES:
            if isinstance(loaded.get(name), Mapping) and loaded[name]:
                entry, loaded = name, loaded[name]
                break
    if not isinstance(loaded, Mapping) or not any(
        isinstance(value, Tensor) for value in loaded.values()
    ):
        came = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else repr(type(loaded))
        raise WeightsError(
            f"{path} holds no state dict: {shortened_text(printable(came))}.", remedy=_REMEDY
        )
    return entry, loaded


def _float_tensors(path: Path, named: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {}
    for name, value in named.items():
        text = shortened(name)
        is_tensor = isinstance(value, Tensor)
        if _QUANTISED_NAMES.search(str(name)) or (is_tensor and value.dtype in _QUANTISED_DTYPES):
            raise WeightsError(
                f"{path} is quantised: {text} belongs to an int8 network.",
                remedy="Give the float32 weights; int8 files are made by nas export.",
            )
        if not is_tensor or value.layout is not torch.strided:
            came = type(value).__name__ if not is_tensor else f"a tensor of {value.layout}"
            raise WeightsError(f"{path}: {text} is {came}, not a tensor.", remedy=_REMEDY)
        if value.is_floating_point():
            tensors[str(name)] = value
        elif value.dim() > 0:
            raise WeightsError(
                f"{path}: {text} has {value.dtype} values.", remedy="Give float32 weights."
            )
    return tensors


_QUANTISED_DTYPES = frozenset([torch.qint8, torch.quint8, torch.qint32, torch.int8, torch.uint8])
