"""A run folder with a trained supernet and scored candidates, made in seconds without a device."""

import json
from pathlib import Path

import pytest

from nas import files
from nas.data import ImageDataset, load_dataset
from nas.files.documents import to_json
from nas.opened_run import open_run
from nas.run import candidates
from nas.run.record import DataSummary, FinalistsRecord, RunRecord
from nas.run.settings import JobSettings
from nas.search import Trial
from nas.space import library, load_space
from nas.space.records import SpaceSettings
from nas.supernet.evaluation import evaluate
from nas.supernet.recipe import Recipe
from nas.supernet.training import train
from tests.made_once import made_once

SPACE = "mobilenet_tiny"

SETTINGS = JobSettings.model_validate(
    {
        "name": "example",
        "seed": 5,
        "data": {"source": "digits", "validation_fraction": 0.5},
        "training": {"epochs": 1, "device": "cpu"},
        "space": [{"name": SPACE}],
    }
)


def make_run(folder: Path, data: ImageDataset, candidate_count: int = 6) -> Path:
    """Write a run folder whose candidates have made-up latencies, proportional to their MACs.

    Args:
        folder: path of the new folder.
        data: the images of digits, split with the seed of `SETTINGS`.
        candidate_count: number of candidates.
    """
    folder.mkdir(parents=True)
    space = load_space(SPACE, image_size=8, channels=1, classes=10)
    (folder / "spaces").mkdir()
    (folder / "spaces" / f"{SPACE}.py").write_bytes(library.path_of(SPACE).read_bytes())
    training = Recipe(epochs=1, device="cpu")
    supernet = train(space, data, folder / "supernets" / SPACE, training, seed=SETTINGS.seed)
    networks = [space.sample(seed=seed) for seed in range(candidate_count)]
    trials = [
        Trial(
            network.digest,
            network,
            {},
            "complete",
            {"predicted_us": network.macs / 1000, "validation_error": 1 - accuracy},
            0.1,
        )
        for network, accuracy in zip(networks, evaluate(supernet, networks, data), strict=True)
    ]
    rows = candidates.from_trials(
        trials, latencies={}, holdout_accuracy={}, problems={}, predictions={}
    )
    candidates.write(rows, folder / "trials.csv")
    (folder / "job.toml").write_text(SETTINGS.to_toml())
    record = RunRecord(
        schema=6,
        name=SETTINGS.name,
        command="nas run example.toml",
        started="2026-01-01T00:00:00+00:00",
        job=SETTINGS,
        versions={},
        stages={},
        data=DataSummary(
            source="digits",
            digest=data.digest,
            classes=list(data.classes),
            judging_digest="0123",
            class_counts=data.part_class_counts,
        ),
        spaces={SPACE: space.digest},
        settings=SpaceSettings(**space.settings),
        finalists=FinalistsRecord(budget=SETTINGS.budget, count=2, epochs=1),
    )  # fmt: skip
    files.replace(folder / "run.json", to_json(record))
    return folder


def shared_run(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that all tests share. A test that changes it needs a copy."""

    def make(folder: Path) -> None:
        data = load_dataset("digits", validation_fraction=0.5, seed=SETTINGS.seed)
        make_run(folder / "run", data)

    return made_once(factory, "example_run", make) / "run"


def front_ids(folder: Path) -> list[str]:
    """Return the IDs of the front of a run, the fastest first."""
    ids: list[str] = open_run(folder).front["id"].tolist()
    return ids


def change_record(folder: Path, **changes: object) -> None:
    """Replace fields of `run.json`."""
    path = folder / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
