"""Pickles that are interpreted: equal to Python's own for plain data, and harmless otherwise."""

import argparse
import collections
import contextlib
import io
import os
import pickle
import struct

import pytest

from nas.pretrained.unpickling import Global, Machine, StandIn

PLAIN = {
    "numbers": [0, -1, 255, 1 << 16, -(1 << 31), 1 << 62, 10**40, 1.5, float("inf"), True, False],
    "texts": ["", "a", "ü" * 300, b"", b"x" * 300, None],
    "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[]], {}, {"a": {3: "c"}}],
    7: "a number as a key",
}


DAMAGED = (ValueError, LookupError, AttributeError, EOFError, TypeError, pickle.UnpicklingError)
"""What a damaged pickle may raise."""


def run(content, call=StandIn, persistent=lambda identifier: identifier):
    return Machine(io.BytesIO(content), call, persistent).run()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_are_those_of_python(protocol):
    data = PLAIN
    if protocol < 3:  # Bytes are calls there.
        data = {**PLAIN, "texts": [each for each in PLAIN["texts"] if not isinstance(each, bytes)]}
    assert run(pickle.dumps(data, protocol)) == data
    shared = [1]
    again = run(pickle.dumps([shared, shared], protocol))
    assert again[0] is again[1]
    ordered = collections.OrderedDict(a=1, b={"c": 2})
    assert run(pickle.dumps(ordered, protocol)) == {"a": 1, "b": {"c": 2}}


def test_a_list_that_holds_itself_is_read():
    holder = []
    holder.append(holder)
    again = run(pickle.dumps(holder))
    assert again[0] is again


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_become_stand_ins(protocol):
    made = run(pickle.dumps([argparse.Namespace(rate=0.1), os.sep], protocol))
    assert made[1] == os.sep
    assert isinstance(made[0], StandIn)
    assert {"rate": 0.1} in made[0].content


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_sets_become_lists_or_stand_ins(protocol):
    made = run(pickle.dumps([{1, 2}, frozenset([3])], protocol))
    assert all(isinstance(each, (list, StandIn)) for each in made)


class Reduced:
    """An object whose pickle calls something."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_called(protocol, tmp_path):
    path = tmp_path / "made"
    calls = [
        (os.mkdir, (str(path),)),
        (eval, (f"__import__('os').mkdir({str(path)!r})",)),
        (getattr, (os, "mkdir")),
    ]
    for function, arguments in calls[:2]:
        for where in (
            Reduced(function, arguments),
            {"model": Reduced(function, arguments)},
            Reduced(Reduced, (), None, iter([Reduced(function, arguments)])),
            Reduced(Reduced, (), {"__setstate__": Reduced(function, arguments)}),
            Reduced(dict, (), None, None, iter([("a", Reduced(function, arguments))])),
        ):
            run(pickle.dumps(where, protocol))
            assert not path.exists()


HOSTILE = {
    "system": b"cos\nsystem\n(S'touch made'\ntR.",
    "instance": b"(S'touch made'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'touch made'\no.",
    "by attributes": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR"
    b"(S'touch made'\ntR.",
    "attribute of an operator": b"c_operator\nattrgetter\n(S'system'\ntR(cos\n\ntR.",
    "partial": b"cfunctools\npartial\n(cos\nsystem\nS'touch made'\ntR(tR.",
    "dotted name": b"\x80\x04\x8c\x02os\x8c\x0bpath.system\x93(\x8c\x0atouch madetR.",
    "registered": b"\x80\x02\x82\x01(U\x0atouch madetR.",
    "of a machine": b"cnas.pretrained.unpickling\nMachine\n(tR.",
    "state": b"(dS'__class__'\ncos\nsystem\nsb.",
    "state of a dict": b"(d(dS'__class__'\ncos\nsystem\nsS'update'\ncos\nsystem\nsb.",
    "new with names": b"\x80\x04cos\nsystem\n)}(\x8c\x07command\x8c\x0atouch madeu\x92.",
    "numbered": b"P1\n.",
}
"""Pickles that call a function or change an object where they are not only interpreted."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_does_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        made = run(HOSTILE[name])
    except DAMAGED:
        made = None
    assert made is None or isinstance(made, (StandIn, Global, dict, str))
    assert not list(tmp_path.iterdir())


DEEP = 100_000

BOMBS = {
    "nested tuples as a key": b"}" + b")" + b"\x85" * DEEP + b"Ns.",
    "nested tuples in a set": b"\x80\x04\x8f(" + b")" + b"\x85" * DEEP + b"\x90.",
    "tuples that double as a key": b"})" + b"2\x86" * 200 + b"Ns.",
    "lists that double": b"]" + b"2\x86" * 200 + b"0N.",
    "nested lists": b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "nested objects": b"cos\nx\n)R" + b"\x85cos\nx\nq\x000h\x00" * 1000 + b".",
    "large memo": b"N" + b"r\xff\xff\xff\xff" + b".",
    "long text": b"\x8d" + struct.pack("<Q", 1 << 60) + b"a.",
    "long bytes": b"\x8e" + struct.pack("<Q", 1 << 60) + b"a.",
    "long number": b"\x8b" + struct.pack("<I", 1 << 30) + b"a.",
    "digits": b"L" + b"9" * 100_000 + b"L\n.",
    "endless": b"N0" * 1_100_000 + b".",
    "many marks": b"(" * DEEP + b".",
    "no stack": b"R.",
    "underflow": b"0000.",
    "no memo": b"h\x05.",
    "no end": b"NNN",
    "nothing": b"",
    "buffer": b"\x80\x05\x97.",
    "items without a value": b"}(Nu.",
    "items of a text": b"Va\n(NNu.",
    "elements of a dict": b"}(Ne.",
    "bad code": b"\xff.",
    "long name": b"\x80\x04(V" + b"a" * 5000 + b"\nq\x00Vb\n\x93.",
    "a call of what is called": b"cos\nx\n" + b")R" * DEEP + b".",
    "arguments that are copied": b"(" + b"N" * DEEP + b"tq\x000"
    + b"cos\nx\nh\x00R0" * 1000 + b"N.",
    "pairs that are copied": b"(" + b"NN\x86" * 100_000 + b"l\x85q\x000"
    + b"ccollections\nOrderedDict\nh\x00R0" * 1000 + b"N.",
    "a pair that is long": b"(" + b"N" * DEEP + b"tq\x000(h\x00l\x85q\x010"
    + b"ccollections\nOrderedDict\nh\x01R0" * 1000 + b"N.",
}  # fmt: skip
"""Pickles that take much time or memory, or end the process, or are damaged."""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_ends_soon_with_an_error_or_a_value(name):
    with contextlib.suppress(*DAMAGED):
        run(BOMBS[name])


def test_keys_that_collide_are_not_compared():
    """Python's hash of these numbers is zero; a dict of them takes minutes."""
    numbers = [((1 << 61) - 1) * factor for factor in range(1, 20_001)]
    keys = b"".join(pickle.dumps(each, 2)[2:-1] + b"N" for each in numbers)
    assert len(run(b"}(" + keys + b"u.")) == len(numbers)
