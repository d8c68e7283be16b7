"""The mini job: a whole job that is small enough for a test, with three families, on digits."""

from collections.abc import Iterable
from pathlib import Path

SPACES = {
    "mobile": """
        Stage("stem", "conv", (4, 8), per_stage={"kernel": 3}),
        Stage("body", "inverted_residual", 8, (1, 2), 2, entry="linear_bottleneck",
              per_block={"kernel": (3, 5), "expand": (1, 3)}),
        Stage("head", "linear_classifier"),
    """,
    "shuffle": """
        Stage("stem", "conv", 8, per_stage={"kernel": 3}),
        Stage("body", "shuffle_unit", 16, (1, 2), 2, entry="shuffle_entry",
              per_block={"unit": ("basic", "xception"), "kernel": 3}),
        Stage("head", "linear_classifier"),
    """,
    "squeeze": """
        Stage("stem", "conv", 8, per_stage={"kernel": 3}),
        Stage("pool", "max_pool", stride=2, per_stage={"kernel": 3}),
        Stage("body", "fire", (16, 32), (1, 2), per_block={"squeeze": 0.5, "share3x3": 0.5}),
        Stage("head", "conv_classifier"),
    """,
}

JOB = """
name = "mini"
seed = 5

[data]
source = "digits"
validation_fraction = 0.5

[training]
epochs = 2

[search]
trials = 30
anchors = 0

[finish]
measure = 10
retrain = 0
export = []
"""


def write_job(folder: Path, *, spaces: Iterable[str] = tuple(SPACES), extra: str = "") -> Path:
    """Write the mini job and its space files, and return the path of the job file.

    Args:
        folder: folder of the files. Paths in the job are relative to it.
        spaces: names of its spaces.
        extra: text that is appended to the job file.
    """
    text = JOB
    for name in spaces:
        source = f"SPACE = SearchSpace({name!r}, ({SPACES[name]}))\n"
        (folder / f"{name}.py").write_text("from nas.space import SearchSpace, Stage\n" + source)
        text += f'\n[[space]]\nname = "{name}.py"\n'
    path = folder / "job.toml"
    path.write_text(text + extra)
    return path
