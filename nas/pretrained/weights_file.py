"""Reads files of weights: safetensors, or what torch.save wrote, with state dicts anywhere in it.

No code of a file is run: see `nas.pretrained.torch_file`.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from nas.errors import WeightsError, printable, shortened_text
from nas.files.documents import ForeignFileError, read_bytes
from nas.files.paths import in_folder
from nas.pretrained.state_dicts import StateDict, state_dict
from nas.pretrained.torch_file import (
    NO_TORCH_FILE_REMEDY,
    StandIn,
    damaged_error,
    read_torch_file,
)

MAX_FILE_BYTES = 1 << 30
"""Largest file that is read: a training checkpoint of EfficientNet-Lite4 has 200 MB."""


class WeightsFile(NamedTuple):
    """A file of weights.

    Attributes:
        path: path of the file.
        sha256: SHA-256 of the file, in hexadecimal digits.
        file_bytes: size of the file.
        is_ordered: whether the tensors stand in the order in which their modules were defined.
            Safetensors sorts them by name.
        metadata: the texts in the header of a safetensors file.
        entry: entry of the training checkpoint that holds the weights; empty if there is none.
        left_out: what else holds tensors: entries of the checkpoint, and names beside the layers.
    """

    path: Path
    sha256: str
    file_bytes: int
    is_ordered: bool
    metadata: dict[str, str]
    entry: str = ""
    left_out: tuple[str, ...] = ()


class FileContent(NamedTuple):
    """The tensors of a file of weights.

    Attributes:
        file: the file.
        state_dicts: the state dicts in it, the outermost first.
        holders: the keys that lead to all that holds tensors.
    """

    file: WeightsFile
    state_dicts: list[StateDict]
    holders: list[tuple[str, ...]]

    def others(self, state: StateDict) -> Iterator[str]:
        """Iterate over the entries beside a state dict that hold tensors."""
        for holder in self.holders:
            same = [a == b for a, b in zip(holder, state.path, strict=False)]
            if False in same:
                yield ".".join(holder[: same.index(False) + 1])
            elif len(holder) > len(state.path):
                yield ".".join(holder[: len(state.path) + 1])


def read_weights_file(path: Path) -> FileContent:
    """Return the tensors of a file.

    Raises WeightsError for a file that cannot be read, is of another kind or damaged, or holds no
    state dict.
    """
    try:
        content = read_bytes(path, MAX_FILE_BYTES)
    except ForeignFileError as error:
        raise WeightsError(
            f"{path} holds no weights: {error.strerror}.", remedy=NO_TORCH_FILE_REMEDY
        ) from None
    except OSError as error:
        raise WeightsError(
            f"{path}{in_folder(path)} cannot be read: {error.strerror}.",
            remedy=NO_TORCH_FILE_REMEDY,
        ) from None
    if not content:
        raise WeightsError(f"{path} is empty.", remedy="Download it again.")
    is_safetensors = content[8:9] == b"{" or path.suffix == ".safetensors"
    loaded = _safetensors(path, content) if is_safetensors else read_torch_file(path, content)
    metadata = _metadata(content) if is_safetensors else {}
    sha256 = hashlib.sha256(content).hexdigest()
    file = WeightsFile(path, sha256, len(content), not is_safetensors, metadata)
    return _searched(file, loaded)


def _safetensors(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise damaged_error(path, error) from None


def _metadata(content: bytes) -> dict[str, str]:
    """Return the texts in the header of a safetensors file that was read without an error."""
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return dict(header.get("__metadata__") or {})


_Node = tuple[tuple[str, ...], Any, str]
"""The keys that lead to a value, the value, and the class of the object that it is a part of."""


def _searched(file: WeightsFile, loaded: Any) -> FileContent:
    """Return the mappings that hold tensors. Raises WeightsError if there are none.

    A tensor that is a part of an object does not count: only the code of its class says how the
    object uses it.
    """
    states, holders, owners = [], [], []
    waiting: deque[_Node] = deque([((), loaded, "")])
    seen: set[int] = set()
    while waiting:
        path, value, owner = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, StandIn):
            waiting += [(path, value.items, owner), (path, value.content, owner or value.name)]
            continue
        is_mapping, has_tensors = isinstance(value, dict), False
        for key, child in value.items() if is_mapping else enumerate(value):
            has_tensors = has_tensors or isinstance(child, Tensor)
            if isinstance(child, (dict, list, tuple, StandIn)):
                waiting.append((path if owner else (*path, _text(key)), child, owner))
        if has_tensors:
            holders.append(path)
            if owner:
                owners.append(owner)
            elif is_mapping:
                states.append(state_dict(path, value))
    if states:
        return FileContent(file, states, holders)
    if owners:
        raise WeightsError(
            f"{file.path} holds {printable(shortened_text(owners[0]))} objects, which could run "
            "code when loaded, and no state dict.",
            remedy="If you trust it, write its weights alone: torch.save(model.state_dict(), "
            "FILE).",
        )
    came = ", ".join(map(_text, loaded)) if isinstance(loaded, dict) else type(loaded).__name__
    raise WeightsError(
        f"{file.path} holds no state dict: {shortened_text(printable(came))}.",
        remedy=NO_TORCH_FILE_REMEDY,
    )


def _text(key: Any) -> str:
    return str(key) if isinstance(key, (str, int)) else "?"
