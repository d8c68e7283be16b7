"""The record of a study."""

import json
import zlib

import pytest

from nas.errors import RunFolderError
from nas.files.documents import to_json
from nas.run.settings import StudySettings
from nas.run.study import (
    STUDY_FILE,
    StudyNetwork,
    StudyRecord,
    StudyTraining,
    ordered_by_seed,
    read_study,
)
from nas.space.records import ArchitectureRecord


def network(name, kind="found", latency_us=100.0, found=None) -> StudyNetwork:
    return StudyNetwork(
        name=name,
        kind=kind,
        space="mobile",
        digest=f"g{zlib.crc32(name.encode()):08x}",
        architecture=ArchitectureRecord(space="mobile", choices={}),
        macs=1000,
        params=100,
        predicted_us=latency_us,
        found=found,
        samples_us=((latency_us,) * 3,) * 2,
    )


def training(name, seed, accuracy) -> StudyTraining:
    return StudyTraining(
        network=name,
        seed=seed,
        holdout_accuracy=accuracy,
        test_accuracy=accuracy,
        seconds=1.0,
        error="diverged" if accuracy is None else "",
    )


def study(networks, accuracies, seeds=2) -> StudyRecord:
    """Return a study with some networks, and the accuracies of each by its name."""
    return StudyRecord(
        schema=1,
        command="nas study job.toml",
        settings=StudySettings(seeds=seeds),
        study="search",
        recipe={"learning_rate": 0.1},
        teacher="largest of mobile",
        data="10 images",
        data_digest="d",
        metric="accuracy",
        device="a processor",
        machine="a processor",
        versions={"torch": "2"},
        left_out={},
        networks=tuple(networks),
        trainings=tuple(
            training(name, seed, accuracy)
            for name, own in accuracies.items()
            for seed, accuracy in enumerate(own)
        ),
    )


def test_first_seed_of_all_networks_comes_first_and_kinds_take_turns():
    networks = [network("a"), network("b"), network("p", "published")]
    networks += [network(f"r{number}", "random") for number in range(3)]
    order = [(each.name, seed) for each, seed in ordered_by_seed(networks, 2)]
    names = ["a", "p", "r0", "b", "r1", "r2"]
    assert order == [(name, 0) for name in names] + [(name, 1) for name in names]
    assert ordered_by_seed([], 2) == []


def test_failed_training_counts_as_done_and_has_no_accuracy():
    record = study([network("a"), network("b")], {"a": [0.5, 0.25], "b": [None, 0.75]})
    assert record.is_complete
    assert record.accuracies(record.networks[0]) == [0.5, 0.25]
    assert record.accuracies(record.networks[1]) == [0.75]
    assert not record.model_copy(update={"trainings": record.trainings[1:]}).is_complete


def test_record_is_read_back_and_another_schema_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="has no study"):
        read_study(tmp_path)
    record = study([network("a")], {"a": [0.5]})
    path = tmp_path / STUDY_FILE
    path.write_text(to_json(record))
    assert read_study(tmp_path) == record
    path.write_text(json.dumps({**json.loads(to_json(record)), "schema": 9}))
    with pytest.raises(RunFolderError, match=r"schema 9; this version reads schema 1. Move"):
        read_study(tmp_path)
