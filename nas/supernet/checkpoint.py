"""Tensors with a JSON record in one safetensors file, replaced only as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nas import files
from nas.errors import CheckpointError

SCHEMA = 1


def write(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> None:
    """Replaces `path` by `tensors` and `record` (JSON); at any moment a whole file is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema": SCHEMA, "versions": {"torch": torch.__version__}, **record})
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    files.replace(path, save(kept, {"record": text}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of a file that `write` wrote.

    Raises CheckpointError for a file that is missing, damaged or of an unknown schema.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}.", remedy="Train the supernet first."
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            record = json.loads((file.metadata() or {})["record"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no readable checkpoint: {error}.", remedy="Delete it and train again."
        ) from error
    if record.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {record.get('schema')!r}; this version reads {SCHEMA}.",
            remedy="Use the version that wrote it, or train again.",
        )
    return tensors, record
