"""Jobs whose supernets start from published weights."""

from pathlib import Path

import pytest
import torch

from nas.errors import WeightsError
from nas.job import load_job, supernets
from nas.run.record import read_run
from nas.supernet import checkpoint
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
pretrained = "weights.pth"
conventions = "torch"
"""

RUN = Path("results/job")
WEIGHTS = RUN / "supernets" / "small" / "supernet.safetensors"


@pytest.fixture
def job(tmp_path, monkeypatch):
    from nas.space import load_definition

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
    assert "licence unknown" in summary.summary
    _, record = checkpoint.read(WEIGHTS)
    assert record.published == summary.sha256
    assert record.training["learning_rate"] == pytest.approx(0.02)
    weights = WEIGHTS.read_bytes()
    WEIGHTS.unlink()
    supernets.train_job_supernets(load_job(job), RUN)
    assert WEIGHTS.read_bytes() == weights
    torch.save({}, "weights.pth")
    with pytest.raises(WeightsError):
        supernets.train_job_supernets(load_job(job), RUN)


def test_damaged_file_is_refused_before_any_work(job):
    Path("weights.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        supernets.train_job_supernets(load_job(job), RUN)
    assert not (RUN / "supernets").exists()
