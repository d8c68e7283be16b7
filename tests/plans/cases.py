"""Runs whose trained networks have made-up answers: copies of the example without its files."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np

from nas.deploy.folder import digest
from nas.graph import Graph
from nas.opened_run import open_run
from nas.run.candidates import of_table
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.space.exits import with_exit
from nas.supernet import checkpoint
from nas.torch_network import to_torch
from tests.conftest import EXAMPLE
from tests.plans.split_tables import write_table


def copy_of_example(folder: Path, *, has_files: bool = False) -> Path:
    """Return a copy of the example run, with or without the files of its networks."""
    left_out = () if has_files else ("*.safetensors", "*.so", "*.onnx", "study.journal")
    return shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns(*left_out))


def trained_ids(run: Path) -> list[str]:
    """Return the IDs of the trained networks of a run, the fastest first."""
    return [model.record.id for model in open_run(run).models]


def write_answers(
    run: Path, name: str, right: np.ndarray, confidences: np.ndarray, file: str = "answers.json"
) -> None:
    """Replace what a trained network answered to the images, in the order of their classes."""
    change(
        run / "models" / name / file,
        right=base64.b64encode(np.packbits(right).tobytes()).decode(),
        confidences=base64.b64encode(confidences.astype("<f4").tobytes()).decode(),
        confused=[],
    )


def change(path: Path, **changes: object) -> None:
    """Replace fields of a JSON file; the path of one in another is written as `a__b`."""
    document = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = document
        for parent in parents:
            place = place[parent]
        place[last] = value
    path.write_text(json.dumps(document))


def refit(run: Path, name: str) -> None:
    """Make a trained network of a run one that was refitted, with the same weights as before."""
    folder, record = run / "models" / name, {"images": 1438, "epochs": 8, "seconds": 1.0}
    change(folder / "trained.json", refit=record)
    change(folder / "card.json", refit=record)
    if (folder / "weights.safetensors").is_file():
        shutil.copy(folder / "weights.safetensors", folder / "judged.safetensors")
    sums = (folder / "SHA256SUMS").read_text()
    own = f"{digest(folder / 'card.json')}  card.json"
    (folder / "SHA256SUMS").write_text(re.sub(r"\w+  card\.json", own, sums))


def complementary_run(folder: Path, *, has_files: bool = False) -> Path:
    """Return a copy of the example whose slower networks are right where its fastest one is unsure.

    The fastest network is sure of 75% of the images, and right; of the others it gets none. All
    other networks get 95% of the images, whatever the fastest one answers.
    """
    run = copy_of_example(folder, has_files=has_files)
    first, *others = trained_ids(run)
    counts = open_run(run).models[0].answers.counts
    rank = np.concatenate([np.arange(count) / count for count in counts])
    confidences = np.where(rank < 0.75, 0.97 + rank / 30, 0.9 + rank / 25)
    write_answers(run, first, rank < 0.75, confidences)
    for name in others:
        write_answers(run, name, rank >= 0.05, np.full(len(rank), 0.8))
    return run


def latencies_us(run: Path) -> dict[str, float]:
    """Return the measured latency of each trained network of the front."""
    return {each.id: each.measured_us for each in of_table(open_run(run).trials)}


def run_with_exit(folder: Path, *, has_files: bool = False) -> tuple[Path, str]:
    """Return a copy of the example whose most accurate network has an exit, and the ID of that one.

    All kernels, launches and starts take equally long by the table of the run. The network is right
    on all images but 5%, and its exit on 75%, of which it is sure, and on no others. No other
    network has answers. The files of networks are those of the example, and the weights of the exit
    are random ones, so that it is sure of some images.
    """
    run = copy_of_example(folder, has_files=has_files)
    models = open_run(run).models
    own = max(models, key=lambda model: model.record.space.startswith("mobilenet"))
    for model in models:
        if model is not own:
            (run / model.folder / "answers.json").unlink()
    name, space = own.record.id, own.record.space
    with (run / "spaces" / f"{space}.py").open("a") as file:
        file.write('\nSPACE = SPACE.with_exit("stage1")\n')
    counts = own.answers.counts
    rank = np.concatenate([np.arange(count) / count for count in counts])
    shutil.copy(run / own.folder / "answers.json", run / own.folder / "exit_answers.json")
    write_answers(run, name, rank >= 0.05, np.full(len(rank), 0.8))
    confidences = np.where(rank < 0.75, 0.97 + rank / 40, 0.4 + rank / 4)
    write_answers(run, name, rank < 0.75, confidences, file="exit_answers.json")
    parts = with_exit(open_run(run).architecture(name))
    graphs = (open_run(run).architecture(name).graph, parts.prefix, parts.rest)
    kernels = [kernel for graph in graphs for kernel in TvmRuntime().kernels(graph)]
    table = json.loads((run / "run.json").read_text())["tables"]["float32"]["file"]
    (run / "tables").mkdir()
    write_table(run / "tables" / table, dict.fromkeys(kernels), lambda kernel: 0.01, 0.01, 0.01)
    change(
        run / "run.json", job__device__tables=str(run / "tables"), tables__float32__calibration=None
    )
    if has_files:
        _write_exit(run / own.folder, parts.whole)
    return run, name


def _write_exit(folder: Path, whole: Graph) -> None:
    """Write random weights of an exit to the folder of a model."""
    _, record = checkpoint.read(folder / "weights.safetensors")
    tensors = to_torch(whole, seed=0).tensors()
    tensors["exit.linear.weight"] *= 3
    own = {key: tensor for key, tensor in tensors.items() if key.startswith("exit.")}
    fields = record.model_dump(exclude={"schema_version", "sha256"}, exclude_none=True)
    checkpoint.write(folder / "exit.safetensors", own, fields)
