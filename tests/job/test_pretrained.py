"""Jobs whose supernets start from published weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas.errors import RunFolderError, WeightsError
from nas.job import load_job, supernets
from nas.pretrained import read_weights
from nas.run.record import read_run
from nas.run.settings import PretrainedSettings
from nas.run.trained import PretrainedSummary
from nas.space import load_definition
from nas.supernet import checkpoint
from nas.supernet.settings import FINE_TUNING_RATE
from nas.torch_network import Network

SPACE = """
from nas.space import Reference, SearchSpace, Stage
SPACE = SearchSpace(
    "small",
    (
        Stage("stem", "conv", (4, 8), stride=2, per_stage={"kernel": 3}),
        Stage("body", "inverted_residual", (8, 16), (1, 2), 2,
              per_block={"kernel": (3, 5), "expand": 2}),
        Stage("head", "linear_classifier"),
    ),
    references=(
        Reference("small_1.0", {"*.width": (8, 16), "*.depth": 2, "*.kernel": 3}, "",
                  image_size=32),
    ),
)
"""

JOB = """
[data]
source = "digits"

[training]
epochs = 1

[[space]]
name = "small.py"
pretrained = { file = "weights.pth", conventions = "torch", source = "a friend", data = "toys" }
"""

RUN = Path("results/job")
WEIGHTS = RUN / "supernets" / "small" / "supernet.safetensors"


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.py").write_text(SPACE)
    Path("job.toml").write_text(JOB)
    graph = load_definition("small.py").adapt(image_size=32).reference("small_1.0").graph
    torch.save(Network(graph, torch.Generator().manual_seed(7)).state_dict(), "weights.pth")
    return Path("job.toml")


def test_supernet_starts_from_the_file_at_a_lower_rate(job):
    supernets.train_job_supernets(load_job(job), RUN)
    summary = read_run(RUN).pretrained["small"]
    assert summary.network == "small_1.0"
    assert summary.file == "weights.pth"
    assert summary.conventions == "torch"
    assert summary.summary.endswith("source a friend, licence unknown, trained on toys")
    _, record = checkpoint.read(WEIGHTS)
    assert record.published == summary.sha256
    assert record.training["learning_rate"] == pytest.approx(0.1 * FINE_TUNING_RATE)
    weights = WEIGHTS.read_bytes()
    WEIGHTS.unlink()
    supernets.train_job_supernets(load_job(job), RUN)
    assert WEIGHTS.read_bytes() == weights
    torch.save({}, "weights.pth")
    with pytest.raises(WeightsError):
        supernets.train_job_supernets(load_job(job), RUN)


def test_path_stands_for_a_table_with_the_file_alone(job):
    settings = load_job(job)
    job.write_text(JOB.partition("pretrained")[0] + 'pretrained = "weights.pth"\n')
    (space,) = load_job(job).space
    assert space.pretrained == PretrainedSettings(file="weights.pth")
    job.write_text(settings.to_toml())
    assert load_job(job) == settings


@pytest.mark.parametrize(
    ("stated", "by_file", "words"),
    [
        (None, None, "licence unknown,"),
        (None, "Apache-2.0", "licence Apache-2.0,"),
        ("MIT", None, "licence MIT,"),
        ("MIT", "MIT", "licence MIT,"),
        ("MIT", "Apache-2.0", "licence MIT as stated, Apache-2.0 by the file,"),
    ],
)
def test_licence_is_that_of_the_user_and_of_the_file(job, stated, by_file, words):
    spaces = [load_definition("small.py")]
    weights = read_weights("weights.pth", conventions="torch", spaces=spaces)
    settings = PretrainedSettings(file="weights.pth", licence=stated)
    summary = PretrainedSummary.of(replace(weights, licence=by_file), settings).summary
    assert words in summary
    assert summary.endswith("trained on unknown data")


def test_statements_can_change_after_the_training(job):
    supernets.train_job_supernets(load_job(job), RUN)
    job.write_text(JOB.replace("a friend", "https://example.org").replace("toys", "photos"))
    supernets.train_job_supernets(load_job(job), RUN)
    assert read_run(RUN).pretrained["small"].source == "https://example.org"
    job.write_text(JOB.replace('"weights.pth"', '"other.pth"'))
    with pytest.raises(RunFolderError, match=r"\[space.pretrained\] file was 'weights.pth' and"):
        supernets.train_job_supernets(load_job(job), RUN)


def test_damaged_file_is_refused_before_any_work(job):
    Path("weights.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        supernets.train_job_supernets(load_job(job), RUN)
    assert not (RUN / "supernets").exists()
