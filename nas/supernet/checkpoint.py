"""Checkpoint files: tensors and a JSON record in one safetensors file, with a checksum."""

from __future__ import annotations

import hashlib
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
from nas.files import jsonl
from nas.files.documents import SCHEMA, Format
from nas.files.foreign import file_problem
from nas.supernet.records import CheckpointRecord

LOG_LINES = 200
"""Approximate number of lines in a training log; enough for a plot, and small."""

RECORD_KEY = "record"
"""The only entry of the metadata, because safetensors writes several in no fixed order."""

_CHECKPOINT = Format(
    CheckpointRecord,
    "a checkpoint",
    CheckpointError,
    "Copy it again from where it was written, or move it away and train again.",
)


def write(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> None:
    """Replace the file `path` by `tensors` and `record`, in one step.

    The file also gets the schema number, the version of torch, and a SHA-256 over all content. A
    process that is killed meanwhile leaves the previous file.

    Args:
        path: the safetensors file; its folder is made if missing.
        tensors: tensors by name, on any device.
        record: metadata, the fields of `nas.supernet.records.CheckpointRecord`; must be JSON.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"schema": SCHEMA, "versions": {"torch": torch.__version__}, **record}
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**content, "sha256": _checksum(stored, content)})
    files.replace(path, save(stored, {RECORD_KEY: text}))


def read(path: Path) -> tuple[dict[str, Tensor], CheckpointRecord]:
    """Return the tensors, on the CPU, and the record of a file that `write` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or of an unknown schema.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}.", remedy="Train the supernet first."
        )
    tensors, text = read_tensors(path, _CHECKPOINT)
    record = _CHECKPOINT.parse(text.encode(), f"The record in {path}")
    content = json.loads(text)
    if content.pop("sha256", None) != _checksum(tensors, content):
        raise _CHECKPOINT.failure(
            f"{path} is damaged: its checksum does not match its weights and its record"
        )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise _CHECKPOINT.failure(
                f"{path} is damaged: tensor {name!r} has values that are not finite"
            )
    return tensors, record


def read_tensors(path: Path, kind: Format[Any]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file, on the CPU, and the text of its record.

    Args:
        path: the file.
        kind: what the record should be; its error is raised if the file is not readable.
    """
    if problem := file_problem(path):
        raise kind.failure(f"{path} is not readable: {problem}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise kind.failure(f"{path} is not readable: {error}") from error
    return tensors, metadata.get(RECORD_KEY, "")


def require_tensors(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raise CheckpointError unless `tensors` has every tensor of `expected`.

    Args:
        path: file that the tensors were read from, for the message.
        tensors: tensors of the file by name.
        expected: tensors with the required names, shapes and dtypes; their values are not read.
    """
    for name, required in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise _CHECKPOINT.failure(f"{path} has no tensor {name!r}")
        if tensor.shape != required.shape or tensor.dtype != required.dtype:
            raise _CHECKPOINT.failure(
                f"{path}: tensor {name!r} is {_describe(tensor)}, not {_describe(required)}"
            )


def read_own(
    path: Path, identity: Mapping[str, object]
) -> tuple[dict[str, Tensor], CheckpointRecord] | None:
    """Return what `read` does for a checkpoint of one training; None if there is no file.

    Args:
        path: the file.
        identity: fields of the record that the training has in common with its checkpoints.

    Raises:
        CheckpointError: the file is damaged, or of another training.
    """
    if not path.is_file():
        return None
    tensors, record = read(path)
    stored = record.model_dump()
    for key, expected in identity.items():
        if stored[key] != expected:
            raise CheckpointError(
                f"{path} holds a training with {_difference(key, stored[key], expected)}.",
                remedy="Train in another folder, or move this one away.",
            )
    return tensors, record


def _difference(key: str, stored: object, expected: object) -> str:
    """Return how two values differ; of settings of a training, only the first different one."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        for name in expected:
            if stored.get(name) != expected[name]:
                return f"{name} = {stored.get(name)}, not {expected[name]}"
    return f"{key} = {stored}, not {expected}"


def log_step(log: Path, step: int, steps: int, figures: Mapping[str, object]) -> None:
    """Append a line to a training log, for about `LOG_LINES` of the steps and for the last one.

    Args:
        log: the training log.
        step: number of the step, from 1.
        steps: number of steps of the whole training.
        figures: further fields of the line.
    """
    if step % max(1, steps // LOG_LINES) == 0 or step == steps:
        jsonl.append(log, {"schema": SCHEMA, "step": step, "steps": steps, **figures})


def truncate_log(log: Path, kind: Format[Any], last_step: int) -> None:
    """Remove the lines behind `last_step`, which a resumed training writes again.

    Args:
        log: the training log, which may be missing.
        kind: format of its lines.
        last_step: number of the last step that is done.
    """
    rows = [row for row in jsonl.read(log, kind) if row.step <= last_step]
    lines = [row.model_dump_json(by_alias=True) + "\n" for row in rows]
    files.replace(log, "".join(lines))


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of tensors on the CPU by name, 16 hexadecimal digits."""
    return _checksum(tensors, {})[:16]


def _describe(tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "a single number"
    return f"{shape} of {str(tensor.dtype).removeprefix('torch.')}"


def _checksum(tensors: Mapping[str, Tensor], record: Mapping[str, object]) -> str:
    """Return the SHA-256 of the record and of each tensor's name, dtype, shape and bytes."""
    checksum = hashlib.sha256(json.dumps(record).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        checksum.update(tensor.flatten().view(torch.uint8).numpy().data)
    return checksum.hexdigest()
