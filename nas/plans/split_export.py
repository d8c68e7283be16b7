"""`export_split`: the two parts of a network as files, with scripts that run them without `nas`."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nas import files
from nas.data import image_reading
from nas.deploy import script_steps
from nas.deploy.folder import PREPROCESSING_FILE
from nas.deploy.formats import model_format
from nas.deploy.model import TrainedModel, normalised
from nas.deploy.scripts import RUN_LIMIT_SECONDS, standalone
from nas.deploy.verify import (
    SAMPLE_IMAGES,
    ReferenceImages,
    require_agreement,
    run_on_files,
    sample_images,
)
from nas.errors import ExportError
from nas.files import foreign
from nas.files.documents import to_json
from nas.graph import Graph
from nas.machine.processes import python_environment
from nas.plans import split_wire
from nas.plans.split import SplitPlan, Way, halves
from nas.plans.split_wire import pack, unpack
from nas.run.progress import JobProgress
from nas.run.run import Run

DEVICE_FILE, SERVER_FILE = "device.onnx", "server.onnx"
"""Names of the files of the two parts."""

SPLIT_FILE = "split.json"
"""Name of the file that says where the network is cut, for the scripts and for people."""

_HERE = Path(__file__).parent


def export_split(
    run: Run, model: TrainedModel, way: Way, plan: SplitPlan, folder: Path, progress: JobProgress
) -> Path:
    """Write the two parts of a trained network to a folder, after a check of what they compute.

    The logits of both ONNX files together are compared with those of torch, with a tensor of
    float32 values between them. Then `device.py` classifies images with a running `server.py`, and
    its logits are compared with those of the files and the values that the cut sends.

    Args:
        run: the run, on whose images the parts are compared.
        model: the network.
        way: a cut of `plan`.
        plan: cuts of the network.
        folder: the folder, which must not exist or be empty.
        progress: receives the stage.

    Raises:
        RequestError: the folder has files, or cannot be made.
        ExportError: the parts do not compute what the network does.
    """
    if way.position is None or way.transfer is None:
        raise ValueError(f"{way.name} is no cut")
    progress.begin("export the split", "step")
    parts = dict(zip((DEVICE_FILE, SERVER_FILE), halves(model.graph, way.position), strict=True))
    with files.new_folder(folder) as staging:
        for name, part in parts.items():
            _write_part(part, model, staging / name)
        _write_texts(run, model, way, plan, staging)
        progress.advance(1, 2, "verifying")
        _verify(run, model, way.transfer, parts[SERVER_FILE], staging)
    progress.advance(2, 2)
    return folder


def _write_part(part: Graph, model: TrainedModel, path: Path) -> None:
    """Write a part to an ONNX file whose input and output have the names of what they are."""
    from nas import onnx_model

    proto = onnx_model.model(part, model.weights)
    is_first = path.name == DEVICE_FILE
    onnx_model.rename(proto, onnx_model.OUTPUT if is_first else onnx_model.INPUT, "activation")
    onnx_model.save(proto, path)


def _write_texts(run: Run, model: TrainedModel, way: Way, plan: SplitPlan, folder: Path) -> None:
    """Write the scripts, and the descriptions that they read."""
    document = {
        "schema": 1,
        "network": {"run": run.path.name, "digest": model.architecture.digest},
        "architecture": model.architecture.to_json(),
        "position": way.position,
        "after": way.after,
        "shape": way.shape,
        "transfer": way.transfer,
        "link": asdict(plan.link),
        "predicted_us": {
            "device": way.device_us,
            "link": way.link_us(plan.link),
            "server": way.server_us,
        },
        "basis": plan.basis,
    }
    scripts = {
        "device": (image_reading, foreign, script_steps, split_wire),
        "server": (foreign, script_steps, split_wire),
    }
    texts = {
        f"{name}.py": standalone(_HERE / f"split_{name}.py", *modules)
        for name, modules in scripts.items()
    }
    texts[SPLIT_FILE] = json.dumps(document, indent=1) + "\n"
    texts[PREPROCESSING_FILE] = to_json(model.preprocessing)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _verify(run: Run, model: TrainedModel, transfer: str, second: Graph, folder: Path) -> None:
    """Raise ExportError unless files and scripts compute what the network does."""
    onnx = model_format("onnx")
    images = sample_images(run.data.search, SAMPLE_IMAGES)
    inputs = normalised(images, model.preprocessing)
    device, server = (onnx.open(folder / name) for name in (DEVICE_FILE, SERVER_FILE))
    tensors = device.logits(inputs).reshape(-1, *second.input_shape)
    require_agreement(
        "server.onnx behind device.onnx", server.logits(tensors), model.logits(inputs), onnx
    )
    sent = [unpack(pack(each, transfer)).reshape(each.shape) for each in tensors]
    reference = ReferenceImages(images, server.logits(np.stack(sent)))
    with running(folder / "server.py") as address:
        results = run_on_files(folder / "device.py", ["--server", address], reference)
    logits: NDArray[np.float32] = np.array(results, np.float32)
    require_agreement("server.py behind device.py", logits, reference.logits, onnx)


@contextmanager
def running(script: Path, *options: str) -> Iterator[str]:
    """Run a `server.py` with options at a free port, and yield its address."""
    command = [sys.executable, str(script.absolute()), "--port", "0", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=python_environment()
    ) as process:
        watch = threading.Timer(RUN_LIMIT_SECONDS, process.kill)
        watch.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline().decode(errors="replace")
            if not line.startswith("listening on "):
                rest = process.stdout.read().decode(errors="replace")
                *_, reason = ["no reason", *(line + rest).strip().splitlines()]
                raise ExportError(f"{script.name} does not start: {reason[:300]}.")
            yield line.split()[-1]
        finally:
            watch.cancel()
            process.kill()
