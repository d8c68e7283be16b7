"""Makes the folder that is fuzzed: a finished run, its latency table, a space file and images."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nas.kernels.kernel import Kernel
from nas.latency import LatencyTable
from tests.fuzz.targets import EVALUATE, TARGETS, Target, run
from tests.mini_job import SPACES
from tests.runtimes.tvm.kit.simulated_device import SimulatedDevice, kernels_manifest

SPACE = """
from nas.space import SearchSpace, Stage

SPACE = SearchSpace(
    "mine",
    (
        Stage("stem", "conv", (4, 8), per_stage={"kernel": 3}),
        Stage("head", "linear_classifier"),
    ),
    image_size=8,
    channels=1,
    classes=10,
)
"""

IMAGES_PER_CLASS = 8


def make_corpus(finished: Path, folder: Path) -> list[Target]:
    """Fill a folder with the files to damage.

    Args:
        finished: folder of the finished mini job, with `results/mini` and `latency_tables`.
        folder: empty folder.

    Returns:
        The targets, for a member of the run's front.
    """
    shutil.copytree(finished / "results" / "mini", folder / "run")
    shutil.copytree(finished / "latency_tables", folder / "latency_tables")
    for name in [*(f"{space}.py" for space in SPACES), "job.toml"]:
        shutil.copy(finished / name, folder)
    (table,) = (folder / "latency_tables").glob("*.jsonl")
    shutil.copy(table, folder / "table.jsonl")
    shutil.copy(table, folder / "other.jsonl")
    kernels = [each.name for each in LatencyTable.open(table).records("kernel")[:3]]
    SimulatedDevice(folder / "kit", kernels_manifest([*map(Kernel.parse, kernels)])).run()
    (folder / "space.py").write_text(SPACE)
    rank = ("supernet", "rank", "run", "--nets", "3", "--epochs", "1")
    status, _, err = run(folder, rank)
    assert status == 0, err
    status, _, err = run(folder, ("report", "run"))
    assert status == 0, err
    member = json.loads((folder / "run/front.json").read_text())["front"][0]
    (folder / "architecture.json").write_text(json.dumps(member["architecture"]))
    _make_images(folder)
    names = {"digest": str(member["digest"]), "space": str(member["architecture"]["space"])}
    status, out, err = run(folder, EVALUATE.format_map(names).split())
    assert status == 0, err
    (folder / "evaluation.json").write_text(out)
    return [target.filled(names) for target in TARGETS]


def _make_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    contents, labels = [], []
    for label, name in enumerate(("one", "two")):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(IMAGES_PER_CLASS):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            for kind in ("PNG", "JPEG"):
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, kind)
                if kind == "PNG":
                    (folder / "photos" / name / f"{number}.png").write_bytes(content.getvalue())
                else:
                    contents.append({"bytes": content.getvalue(), "path": None})
                    labels.append(label)
    pq.write_table(pa.table({"image": contents, "label": labels}), folder / "rows.parquet")
