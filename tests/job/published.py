"""A job whose supernet starts from published weights, as files: its space, photos and weights."""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nas.job import load_job
from nas.job.folder import claim
from nas.job.stages import open_data
from nas.space import load_definition
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
        Reference("small_0.5", {"*.width": (4, 16), "*.depth": 2, "*.kernel": 3}, "",
                  image_size=32),
    ),
)
"""

JOB = """
[data]
source = "photos"
image_size = 8

[training]
epochs = 1
flip = false

[[space]]
name = "small.py"
pretrained = { file = "weights.pth", conventions = "torch", source = "a friend", data = "toys" }
"""

RUN = Path("results/job")
NAME = "at_widths_of_small_1.0"


def write_files() -> Path:
    """Write the job, its space, its photos and its weights into the working directory."""
    write_photos("photos", 24, 8, 8)
    Path("small.py").write_text(SPACE)
    Path("job.toml").write_text(JOB)
    Path("weights.pth").write_bytes(weights_of("small_1.0"))
    return Path("job.toml")


def weights_of(name):
    """A file of a published network with random weights."""
    graph = load_definition("small.py").adapt(image_size=32).reference(name).graph
    file = BytesIO()
    torch.save(Network(graph, torch.Generator().manual_seed(7)).state_dict(), file)
    return file.getvalue()


def write_photos(folder, count, height, width):
    """Write so many noisy photos of each of two classes, dark and light ones."""
    rng = np.random.default_rng(0)
    for value, name in enumerate(("dark", "light")):
        Path(folder, name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(60 * value, 200 + 50 * value, (height, width, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(Path(folder, name, f"{number}.png"))


def opened(job):
    """The run of a job after its images were opened, before it has begun to train."""
    with claim(RUN, load_job(job)) as run:
        open_data(run)
        run.save()
    return run
