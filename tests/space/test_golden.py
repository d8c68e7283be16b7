"""Digests do not change: run folders and reports name networks by them."""

import json
from dataclasses import replace

import pytest

from nas.space import load_space, space_names
from tests.golden import architectures

RECORDS = json.loads(architectures.PATH.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", space_names())
def test_digests_are_those_on_record(name):
    recorded = [each for each in RECORDS if each["space"] == name]
    assert recorded, "python -m tests.golden.architectures records a new space"
    spaces = {}
    for each in recorded:
        key = (*each["settings"].values(), each["norm"])
        if key not in spaces:
            spaces[key] = replace(load_space(name, **each["settings"]), norm=each["norm"])
        space = spaces[key]
        architecture = space.from_json(each)
        assert architecture.to_json()["choices"] == each["choices"], "still canonical"
        assert architecture.digest == each["digest"]
        if "reference" in each:
            assert space.reference(each["reference"]) == architecture


def test_different_networks_on_record_have_different_digests():
    # A reference can be drawn or be an end as well; settings differ between 32 px and published.
    keys = {json.dumps([r["space"], r["choices"], r["settings"], r["norm"]]) for r in RECORDS}
    assert len({r["digest"] for r in RECORDS}) == len(keys)
