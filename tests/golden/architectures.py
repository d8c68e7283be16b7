"""Records the digests of some architectures of every space, in architectures.json.

A digest names a network in run folders and reports for good, so it must not change with the code.
Record again only where a change is meant: python -m tests.golden.architectures
"""

import json
from pathlib import Path

import numpy as np

from nas.space import load, names

PATH = Path(__file__).with_name("architectures.json")
DRAWN = 3


def records():
    """Ends, references and random architectures, at 32 px and as published."""
    found = []
    for name in names():
        space = load(name).on(image_size=32, channels=3, classes=10)
        rng = np.random.default_rng(0)
        drawn = [space.sample_choices(rng) for _ in range(DRAWN)]
        for architecture in (space.smallest, space.largest, *drawn):
            found.append(record(space, architecture))
        for reference in load(name).references:
            found.append(
                {"reference": reference.name, **record(*load(name).published(reference.name))}
            )
    return found


def record(space, architecture):
    return {
        **architecture.to_json(),
        "settings": space.settings,
        "norm": space.norm,
        "digest": space.lower(architecture).digest,
    }


if __name__ == "__main__":
    PATH.write_text("[\n" + ",\n".join(json.dumps(each) for each in records()) + "\n]\n")
    print(f"{len(records())} architectures in {PATH.name}")
