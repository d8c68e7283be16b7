"""Records the digests of some architectures of every space, in architectures.json.

A digest names a network in run folders and reports for good, so it must not change with the code.
Record again only where a change is meant: python -m tests.golden.architectures
"""

import json
from pathlib import Path

import numpy as np

from nas.space import load_definition, load_space, space_names

PATH = Path(__file__).with_name("architectures.json")
DRAWN = 3


def records():
    """Ends, references and random architectures, at 32 px and as published."""
    found = []
    for name in space_names():
        space = load_space(name, image_size=32)
        rng = np.random.default_rng(0)
        drawn = [space.sample(rng, uniform_over="choices") for _ in range(DRAWN)]
        for architecture in (space.smallest, space.largest, *drawn):
            found.append(record(architecture))
        for reference in load_definition(name).references:
            found.append(
                {
                    "reference": reference.name,
                    **record(load_definition(name).published(reference.name)),
                }
            )
    return found


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
