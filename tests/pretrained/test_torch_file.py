"""Files of torch.save: read as torch reads them, or refused without running code of them."""

import argparse
import collections
import contextlib
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from nas.errors import WeightsError
from nas.pretrained.torch_file import StandIn, read_torch_file

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.uint16,
    torch.float8_e4m3fn,
]  # fmt: skip

PATH = pathlib.Path("weights.pth")


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def tensors():
    """Tensors whose places in their storages differ."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(4, 6, generator=generator)
    attributed = torch.ones(2)
    attributed.note = "an attribute"
    return {
        "whole": whole,
        "row": whole[1],
        "column": whole[:, 2],
        "turned": whole.T,
        "from the second": whole[1:, ::2],
        "single": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "expanded": torch.ones(1, 3).expand(5, 3),
        "parameter": nn.Parameter(torch.randn(2, 2, generator=generator)),
        "with attributes": attributed,
        "subclass": nn.parameter.Buffer(torch.ones(3)),
        "channels last": torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last),
        **{str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in DTYPES},
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_are_those_that_torch_reads(is_new, protocol):
    expected = tensors()
    content = saved(expected, _use_new_zipfile_serialization=is_new, pickle_protocol=protocol)
    read = read_torch_file(PATH, content)
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        again = read[name]
        assert (again.dtype, again.shape) == (tensor.dtype, tensor.shape), name
        assert again.stride() == tensor.stride() or not tensor.numel(), name
        wide = torch.complex64 if tensor.is_complex() else torch.float64
        assert again.to(wide).equal(tensor.detach().to(wide)), name
    assert read["whole"].data_ptr() == read["turned"].data_ptr()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_new", [True, False])
def test_what_is_no_tensor_becomes_plain_data_or_stand_ins(is_new):
    content = {
        "state": collections.OrderedDict(weight=torch.ones(2)),
        "metric": np.float64(71.3),
        "array": np.ones(3),
        "args": argparse.Namespace(rate=0.1),
        "path": pathlib.PurePosixPath("/data"),
        "steps": collections.defaultdict(list, {3: [1]}),
        "random": torch.get_rng_state(),
        "dtype": torch.float32,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "sparse": torch.ones(2).to_sparse(),
        "lr": (0.1, None, {"milestones": {3, 4}}),
    }
    read = read_torch_file(PATH, saved(content, _use_new_zipfile_serialization=is_new))
    assert list(read) == list(content)
    assert isinstance(read["state"], dict)
    assert read["state"]["weight"].tolist() == [1, 1]
    assert read["steps"] == {3: [1]}
    for name in ("metric", "array", "args", "path", "size", "device", "quantised", "sparse"):
        assert isinstance(read[name], StandIn), name
    assert {"rate": 0.1} in read["args"].content
    assert read["lr"][:2] == (0.1, None)


@pytest.mark.parametrize("is_new", [True, False])
def test_every_cut_is_noticed(is_new):
    content = saved({"a": torch.arange(30.0)}, _use_new_zipfile_serialization=is_new)
    for length in range(1, len(content) - 1, 7):
        with pytest.raises(WeightsError):
            read_torch_file(PATH, content[:length])


def test_checksums_that_torch_did_not_write_are_not_missed():
    torch.serialization.set_crc32_options(False)
    try:
        content = saved({"weight": torch.arange(5)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_torch_file(PATH, content)["weight"].tolist() == [0, 1, 2, 3, 4]


def test_every_changed_byte_is_noticed_or_harmless():
    content = saved({"a": torch.arange(30.0), "n": 1})
    values = content.index(torch.arange(30.0).numpy().tobytes())
    for at in range(0, len(content), 3):
        changed = bytearray(content)
        changed[at] ^= 0x55
        try:
            read = read_torch_file(PATH, bytes(changed))
        except WeightsError:
            continue
        assert not values <= at < values + 120
        assert isinstance(read, dict)


def archive(pickled, storage=bytes(16), compression=zipfile.ZIP_STORED, **more):
    """Return a file with the layout of torch.save."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        made.writestr("archive/data.pkl", pickled)
        made.writestr("archive/data/0", storage)
        for name, content in more.items():
            made.writestr(f"archive/{name}", content)
    return file.getvalue()


class Storage:
    """What torch.save writes as a reference to a storage."""

    def __init__(self, *identifier):
        self.identifier = identifier


class Rebuilt:
    """A call of a function of torch that rebuilds a tensor."""

    def __init__(self, *arguments, name="_rebuild_tensor_v2"):
        self.arguments = arguments
        self.name = name

    def __reduce__(self):
        return getattr(torch._utils, self.name), self.arguments


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.identifier if isinstance(value, Storage) else None


def pickled(value):
    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


FLOATS = Storage("storage", torch.FloatStorage, "0", "cpu", 4)


def rebuilt(offset, size, stride, storage=FLOATS):
    return Rebuilt(storage, offset, size, stride, False, collections.OrderedDict())


def test_the_layout_of_the_test_is_that_of_torch():
    content = archive(pickled({"a": rebuilt(1, (3,), (1,))}), np.arange(4, dtype="<f4").tobytes())
    assert read_torch_file(PATH, content)["a"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (1 << 62, (1,), (1,)),
        (0, (2, 2), (3, 2)),
        (0, (1 << 62, 1 << 62), (0, 0)),
        (0, (2,), (-1,)),
        (-1, (2,), (1,)),
        (0, (2, 2), (1,)),
        (0, ("1",), (1,)),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(offset, size, stride):
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        read_torch_file(PATH, archive(pickled({"a": rebuilt(offset, size, stride)})))


@pytest.mark.parametrize(
    "identifier",
    [
        ("storage", torch.FloatStorage, "none", "cpu", 4),
        ("storage", os.system, "0", "cpu", 4),
        ("storage", torch.FloatStorage, 0, "cpu", 4),
        ("module", nn.Linear, "linear.py", "import os"),
        (),
        7,
    ],
)
def test_strange_storages_are_refused(identifier):
    holder = Storage(identifier)
    holder.identifier = identifier
    content = archive(pickled({"a": rebuilt(0, (1,), (1,), holder)}))
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        read_torch_file(PATH, content)


HOSTILE_CALLS = [
    (os.system, ("touch made",)),
    (eval, ("__import__('os').mkdir('made')",)),
    (torch.load, ("other.pth",)),
    (torch.storage._load_from_bytes, (b"\x80\x02cos\nsystem\n(U\x0atouch madetR.",)),
    (torch._utils._rebuild_parameter, (os.system, True, {})),
    (torch._tensor._rebuild_from_type_v2, (os.system, os.system, ("touch made",), {})),
    (torch._tensor._rebuild_from_type_v2, (torch._tensor._rebuild_from_type_v2, 0,
                                           (os.system, 0, ("touch made",), 0), 0)),
    (torch._utils._rebuild_tensor_v2, ()),
    (torch._utils._rebuild_tensor_v2, (os.system, 0, (1,), (1,), False, {})),
    (torch._utils._rebuild_tensor_v3, (os.system, 0, (1,), (1,), False, {}, os.system)),
    (torch._tensor._rebuild_from_type_v2, ()),
]  # fmt: skip

HOSTILE_PICKLES = {
    "instance": b"(S'touch made'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'touch made'\no.",
    "by attributes": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR"
    b"(S'touch made'\ntR.",
    "attribute of an operator": b"c_operator\nattrgetter\n(S'system'\ntR(cos\n\ntR.",
    "partial": b"cfunctools\npartial\n(cos\nsystem\nS'touch made'\ntR(tR.",
    "dotted name": b"\x80\x04\x8c\x02os\x8c\x0bpath.system\x93(\x8c\x0atouch madetR.",
    "state": b"(dS'__class__'\ncos\nsystem\nsb.",
    "state of a dict": b"(d(dS'__class__'\ncos\nsystem\nsS'update'\ncos\nsystem\nsb.",
    "state of a class": b"cos\nsystem\n(dS'__call__'\ncos\nsystem\nsb(S'touch made'\ntR.",
    "new with names": b"\x80\x04cos\nsystem\n)}(\x8c\x07command\x8c\x0atouch madeu\x92.",
}
"""Pickles that call a function or change an object where they are not only read."""


class Called:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


def test_no_call_of_a_file_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = [pickle.dumps(Called(call)) for call in HOSTILE_CALLS]
    contents += [archive(pickle) for pickle in HOSTILE_PICKLES.values()]
    for call in HOSTILE_CALLS:
        for value in (Called(call), {"model": {"weight": torch.ones(2), "x": Called(call)}}):
            contents += [
                saved(value, _use_new_zipfile_serialization=is_new) for is_new in (True, False)
            ]
    for content in contents:
        with contextlib.suppress(WeightsError):
            read_torch_file(tmp_path / "weights.pth", content)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(pickled({}), **{"constants.pkl": b""}), "holds a TorchScript program"),
        (archive(pickled({}), byteorder=b"big"), "another order of bytes"),
        (archive(pickled({}), bytes(9999), zipfile.ZIP_DEFLATED), "is compressed"),
        (archive(pickled({})).replace(b"data.pkl", b"data.txt"), "neither a safetensors file"),
        (pickle.dumps({"a": 1}), "not one that torch.save wrote"),
        (b"no weights", "neither a safetensors file"),
        (b"PK\x03\x04", "damaged or incomplete"),
    ],
)
def test_other_files_are_named(content, message):
    with pytest.raises(WeightsError, match=message):
        read_torch_file(PATH, content)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_not_loaded():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), file)
    with pytest.raises(WeightsError, match="TorchScript.*state_dict"):
        read_torch_file(PATH, file.getvalue())


def test_entries_that_overlap_are_refused():
    """Each of them would be read, so that a small file takes long."""
    content = archive(pickled({}), bytes(1000))
    start = content.index(b"PK\x01\x02")
    directory, end = content[start : content.index(b"PK\x05\x06")], content[-22:]
    entries = [directory[directory.rindex(b"PK\x01\x02") :]] * 100
    many = b"".join([directory, *entries])
    count = len(entries) + 2
    size = len(many).to_bytes(4, "little")
    end = end[:8] + count.to_bytes(2, "little") * 2 + size + end[16:]
    with pytest.raises(WeightsError, match="overlap"):
        read_torch_file(PATH, content[:start] + many + end)


def test_numbers_of_objects_need_no_memory():
    assert read_torch_file(PATH, archive(b"\x80\x02}r\xff\xff\xff\x7f.")) == {}
