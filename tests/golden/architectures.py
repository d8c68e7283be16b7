"""Records the digests of some architectures of every space in architectures.json.

A digest identifies a network in run folders and reports, so it must not change with the code.
Record the digests again only where a change is intended: python -m tests.golden.architectures
"""

import json
from pathlib import Path

import numpy as np

from nas.space import load_definition, load_space, space_names

PATH = Path(__file__).with_name("architectures.json")
RANDOM_ARCHITECTURES = 3
"""Random architectures of each space that are recorded beside the others."""


def records():
    """Return the smallest, the largest and random architectures at 32 px, and the references."""
    rows = []
    for name in space_names():
        space = load_space(name, image_size=32)
        rng = np.random.default_rng(0)
        drawn = [space.sample(rng, uniform_over="choices") for _ in range(RANDOM_ARCHITECTURES)]
        for architecture in (space.smallest, space.largest, *drawn):
            rows.append(record(architecture))
        for reference in load_definition(name).references:
            rows.append(
                {
                    "reference": reference.name,
                    **record(load_definition(name).published(reference.name)),
                }
            )
    return rows


def record(architecture):
    return {
        **architecture.to_json(),
        "settings": architecture.space.settings,
        "norm": architecture.space.norm,
        "digest": architecture.digest,
    }


if __name__ == "__main__":
    PATH.write_text("[\n" + ",\n".join(json.dumps(each) for each in records()) + "\n]\n")
    print(f"{len(records())} architectures in {PATH.name}")
