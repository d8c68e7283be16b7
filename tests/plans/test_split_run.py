"""`nas split`: what it prints and exports for the networks of the example run."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import nas
from nas.deploy.model import normalised
from nas.deploy.networks import load_trained
from nas.errors import ExportError
from nas.latency.build import add_missing_kernels
from nas.plans import split_export
from nas.plans.split import find_cuts, halves
from nas.plans.split_run import JPEG_QUALITY, logits_of_sent
from nas.plans.split_wire import TRANSFERS, pack, receive, unpack
from nas.runtimes.tvm.runtime import TvmRuntime
from nas.torch_network import FoldedWeights, run_graph
from tests.conftest import EXAMPLE
from tests.plans.cases import copy_of_example, refit
from tests.plans.split_tables import kernels_of_parts, write_table


def save_pictures(pixels: np.ndarray, folder: Path) -> list[str]:
    """Write grey images to PNG files in a folder, and return their names."""
    names = [f"image{index}" for index in range(len(pixels))]
    for name, each in zip(names, pixels, strict=True):
        Image.fromarray(each[:, :, 0]).save(folder / name, "PNG")
    return names


PICK = "jc80"
UNTRAINED = "gb7c"


@pytest.fixture(scope="module")
def run():
    return nas.open_run(EXAMPLE)


@pytest.fixture(scope="module")
def model(run):
    return load_trained(run, PICK)


@pytest.fixture(scope="module")
def tables(run, tmp_path_factory) -> list[Path]:
    """Tables of a slow device and a fast server for both networks."""
    folder = tmp_path_factory.mktemp("tables")
    graphs = [run.architecture(pick).graph for pick in (PICK, UNTRAINED)]
    kernels = dict.fromkeys(kernel for graph in graphs for kernel in kernels_of_parts(graph))
    paths = [folder / "phone.jsonl", folder / "server.jsonl"]
    for path, factor in zip(paths, (10, 0.2), strict=True):
        write_table(path, kernels, lambda kernel, factor=factor: factor * (1 + kernel.macs / 1000))
    return paths


@pytest.fixture
def split(invoke, tables):
    """Return a function that runs `nas split` with options besides those of the tables."""

    def call(*options, run=EXAMPLE, pick=PICK, tables=tables, bandwidth=20, rtt_ms=0.2):
        return invoke(
            *("split", run, "--pick", pick, "--device", tables[0], "--server", tables[1]),
            *("--bandwidth-mbps", bandwidth, "--rtt-ms", rtt_ms, *options),
        )

    return call


@pytest.mark.parametrize("transfer", TRANSFERS)
def test_accuracy_with_sent_values_is_that_of_both_parts(run, model, transfer):
    """The parts run one after the other here, not as one network with a changed tensor."""
    images = normalised(run.data.holdout.take(slice(20)), model.preprocessing)
    weights = FoldedWeights({name: torch.from_numpy(each) for name, each in model.weights.items()})
    graph = model.graph
    position = find_cuts(graph, [TvmRuntime()])[0][2]
    first, second = halves(graph, position)
    with torch.inference_mode():
        tensors = run_graph(first, torch.from_numpy(images), weights).numpy()
        sent = np.stack([unpack(pack(each, transfer)).reshape(each.shape) for each in tensors])
        expected = run_graph(second, torch.from_numpy(sent), weights).flatten(1).numpy()
    logits = logits_of_sent(model, position, transfer, images)
    assert logits == pytest.approx(expected, abs=1e-4)
    difference = np.abs(logits - model.logits(images)).max()
    assert (difference > 1e-4) == (transfer != "float32")


def test_json_has_every_way_with_its_latency(split):
    done = split("--json", "--transfer", "int8")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["digest"].startswith(PICK)
    assert document["link"] == {"bandwidth_mbps": 20.0, "rtt_ms": 0.2}
    rivals = {way["name"]: way for way in document["rivals"]}
    assert set(rivals) == {"device", "pixels", "jpeg"}
    assert rivals["device"]["link_us"] == rivals["device"]["sent_bytes"] == 0
    assert rivals["pixels"]["sent_bytes"] == 64
    for way in document["cuts"]:
        parts = (way[name] for name in ("device_us", "link_us", "server_us"))
        assert way["latency_us"] == pytest.approx(sum(parts))
        sent = way["sent_bytes"] + way["answer_bytes"]
        assert way["link_us"] == pytest.approx(200 + 8 * sent / 20)
    own = [way for way in document["cuts"] if way["transfer"] == "int8"]
    assert document["chosen"] == min(own, key=lambda way: way["latency_us"])
    assert document["best"] is None
    assert document["by_bandwidth"][0]["name"] == "device"
    accuracies = document["accuracies"]
    assert set(accuracies) == {"float32", "jpeg", "float16", "int8"}
    assert accuracies["float32"]["value"] == pytest.approx(0.979, abs=0.001)
    assert document["images"] == "240 hold-out images"


def test_jpeg_has_the_mean_size_of_the_files(run, split):
    sizes = []
    for pixels in run.data.holdout.pixels[:]:
        content = BytesIO()
        Image.fromarray(pixels[:, :, 0]).save(content, "JPEG", quality=JPEG_QUALITY)
        sizes.append(len(content.getvalue()))
    rivals = json.loads(split("--json").stdout)["rivals"]
    assert [way["sent_bytes"] for way in rivals if way["name"] == "jpeg"] == [np.mean(sizes)]


def test_text_names_the_fastest_way_first(split, tmp_path):
    done = split("--plot", tmp_path / "split.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Do not cut it: the fastest is all on the server, pixels sent")
    for text in ("97.9%", "stage1.0.project", "from 0 Mbit/s: all on the device", "Not counted"):
        assert text in done.stdout
    assert (tmp_path / "split.png").is_file()
    assert (
        "Cut it at " in split(bandwidth=1000, rtt_ms=0, tables=faster_at_both_ends(tmp_path)).stdout
    )


def test_accuracies_of_a_refitted_network_are_those_before(split, tmp_path):
    run = copy_of_example(tmp_path / "run", has_files=True)
    assert "hold-out images, float32" in split(run=run).stdout
    refit(run, PICK)
    assert "hold-out images before the refit, float32" in split(run=run).stdout


def faster_at_both_ends(folder: Path) -> list[Path]:
    """Return tables of a device that is fast at the first kernels and a server that is not."""
    graph = nas.open_run(EXAMPLE).architecture(PICK).graph.folded
    position = find_cuts(graph, [TvmRuntime()])[0][1]
    first = set(TvmRuntime().kernels(halves(graph, position)[0]))
    kernels = kernels_of_parts(graph)
    paths = [folder / "quick.jsonl", folder / "other.jsonl"]
    for path, is_device in zip(paths, (True, False), strict=True):
        write_table(
            path,
            kernels,
            lambda kernel, is_device=is_device: 1 + 999 * ((kernel in first) != is_device),
        )
    return paths


def test_untrained_network_has_latencies_and_no_accuracies(split, tmp_path):
    document = json.loads(split("--json", pick=UNTRAINED).stdout)
    assert document["cuts"]
    assert document["accuracies"] == {}
    assert "No accuracy is known" in split(pick=UNTRAINED).stdout
    refused = split("--out", tmp_path / "out", pick=UNTRAINED)
    assert refused.returncode == 2
    assert "is not trained" in refused.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def exported(run, tables, tmp_path_factory) -> Path:
    report = run.split(
        PICK,
        device=tables[0],
        server=tables[1],
        bandwidth_mbps=20,
        rtt_ms=0.2,
        transfer="int8",
        position=13,
        out=tmp_path_factory.mktemp("split") / "out",
        progress=False,
    )
    assert report.folder is not None
    assert report.chosen.position == 13
    return report.folder


@pytest.fixture
def server(exported):
    """Run the exported server, and return its address."""
    with split_export.running(exported / "server.py") as address:
        yield address


def test_both_files_together_compute_the_logits(run, model, exported):
    images = normalised(run.data.holdout, model.preprocessing)
    values = images
    for name, ends in (("device", ("image", "activation")), ("server", ("activation", "logits"))):
        onnx.checker.check_model(exported / f"{name}.onnx", full_check=True)
        session = onnxruntime.InferenceSession(exported / f"{name}.onnx")
        assert [each.name for each in (*session.get_inputs(), *session.get_outputs())] == [*ends]
        (values,) = session.run(None, {ends[0]: values})
    assert values == pytest.approx(model.logits(images), abs=1e-4)


def test_scripts_run_without_the_package_and_answer_as_the_network(
    run, model, exported, server, tmp_path
):
    images = run.data.test.take(slice(12))
    names = save_pictures(images.pixels, tmp_path)
    for script in ("device.py", "server.py"):
        text = (exported / script).read_text()
        assert not re.search(r"^\s*(from|import) nas\b", text, re.MULTILINE)
    command = [sys.executable, "-I", exported / "device.py", *names, "--server", server]
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    logits = np.array([result["logits"] for result in json.loads(done.stdout)])
    expected = logits_of_sent(model, 13, "int8", normalised(images, model.preprocessing))
    assert logits == pytest.approx(expected, abs=1e-2)
    done = subprocess.run(
        [*command[:4], *command[-2:]], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    best = run.data.classes[int(expected[0].argmax())]
    assert done.stdout.splitlines()[0].split() == [done.stdout.split()[0], best]


def test_server_survives_what_is_no_message(exported, server, tmp_path, run):
    host, port = server.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(10) == b""
    names = save_pictures(run.data.test.pixels[:1], tmp_path)
    command = [sys.executable, exported / "device.py", *names, "--server", server]
    assert subprocess.run(command, cwd=tmp_path, check=False, capture_output=True).returncode == 0


def test_device_without_a_server_ends_with_one_line(exported, tmp_path, run):
    names = save_pictures(run.data.test.pixels[:1], tmp_path)
    command = [sys.executable, exported / "device.py", *names, "--server", "127.0.0.1:1"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r"127\.0\.0\.1:1: no server\.py answers there \(.+\)\n", done.stderr)


def test_device_leaves_servers_that_fall_silent(exported, server, tmp_path, run):
    """One accepts and says nothing, one sends half a message, one is frozen before it accepts."""
    names = save_pictures(run.data.test.pixels[:1], tmp_path)
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    addresses = ["{}:{}".format(*each.getsockname()) for each in listening]
    command = [sys.executable, exported / "device.py", *names, "--answer-seconds", "2", "--server"]
    devices = [
        subprocess.Popen([*command, address], cwd=tmp_path, stdout=-1, stderr=-1, text=True)
        for address in addresses
    ]
    silent, _ = listening[0].accept()
    half, _ = listening[1].accept()
    half.sendall(pack(np.zeros(10), "float32")[:-3])
    ended = [each.communicate(timeout=300) for each in devices]
    for each in (silent, half, *listening):
        each.close()
    for device, address, (out, error) in zip(devices, addresses, ended, strict=True):
        assert (device.returncode, out) == (1, "")
        assert error == f"{address}: it does not answer (no whole message came within 2 s)\n"


def test_server_leaves_devices_that_fall_silent(exported):
    shape = json.loads((exported / "split.json").read_text())["shape"]
    message = pack(np.zeros(shape), "float32")
    with split_export.running(exported / "server.py", "--idle-seconds", "2") as address:
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as silent:
            silent.settimeout(300)
            assert silent.recv(10) == b""
        # No `device.py`: on a busy machine, it may need longer for an image.
        with socket.create_connection((host, int(port))) as speaking:
            speaking.sendall(message)
            assert len(unpack(receive(speaking, 100, 300))) == 10


def test_server_and_device_take_addresses_of_ipv6(exported, tmp_path, run):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("the system has no IPv6")
    names = save_pictures(run.data.test.pixels[:1], tmp_path)
    with split_export.running(exported / "server.py", "--host", "::1") as address:
        assert address.startswith("[::1]:")
        command = [sys.executable, exported / "device.py", *names, "--server", address]
        done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_server_starts_and_ends_without_a_traceback(exported):
    command = [sys.executable, exported / "server.py", "--port"]
    process = subprocess.Popen(
        [*command, "0"],
        stdout=-1,
        stderr=-1,
        text=True,
        # A shell lets what it starts in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process as server:
        address = server.stdout.readline().split()[-1]
        port = address.rpartition(":")[2]
        second = subprocess.run([*command, port], check=False, capture_output=True, text=True)
        server.send_signal(signal.SIGINT)
        assert server.communicate(timeout=300) == ("", "")
    assert server.returncode == 0
    assert second.returncode == 1
    assert second.stderr.startswith(f"127.0.0.1, port {port}: nothing can listen there (")
    assert len(second.stderr.splitlines()) == 1


def test_server_that_cannot_listen_ends_with_one_line(exported):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = [("127.0.0.1", str(taken.getsockname()[1])), ("127.0.0.1", "70000"), ("?", "0")]
        for host, port in places:
            command = [sys.executable, exported / "server.py", "--host", host, "--port", port]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (1, "")
            line = rf"{re.escape(host)}, port {port}: nothing can listen there \(.+\)\n"
            assert re.fullmatch(line, done.stderr)


def test_description_says_where_the_network_is_cut(exported, run):
    split = json.loads((exported / "split.json").read_text())
    assert (split["schema"], split["position"], split["transfer"]) == (1, 13, "int8")
    assert split["network"]["digest"] == run.architecture(PICK).digest
    assert set(split["predicted_us"]) == {"device", "link", "server"}
    assert (exported / "preprocessing.json").is_file()


def test_folder_with_files_is_left_as_it_is(split, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    done = split("--out", tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path} is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_parts_that_compute_something_else_are_not_exported(run, tables, tmp_path, monkeypatch):
    real = split_export.halves

    def wrong(graph, position):
        first, second = real(graph, position)
        *others, last = second.ops
        return first, type(second)(
            (
                *others,
                last,
                last._replace(kind="relu", inputs=(len(others),), bias=False, slot=None),
            )
        )

    monkeypatch.setattr(split_export, "halves", wrong)
    with pytest.raises(ExportError, match=r"server.onnx behind device.onnx does not compute"):
        run.split(
            PICK,
            device=tables[0],
            server=tables[1],
            bandwidth_mbps=1,
            rtt_ms=1,
            out=tmp_path / "out",
            progress=False,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "options", "status", "message"),
    [
        ({"bandwidth": 0}, (), 2, "The bandwidth is 0 Mbit/s."),
        ({"bandwidth": -3}, (), 2, "The bandwidth is -3 Mbit/s."),
        ({"bandwidth": "nan"}, (), 2, "The bandwidth is nan Mbit/s."),
        ({"rtt_ms": -1}, (), 2, "The round trip takes -1 ms."),
        ({}, ("--at", "12"), 2, "The network cannot be cut at 12: 2 tensors cross"),
        ({}, ("--at", "1"), 2, "The network cannot be cut at 1: it is inside a kernel of runtime"),
        ({}, ("--transfer", "int4"), 2, "Values cannot be sent as 'int4'."),
        ({"pick": "q"}, (), 2, "q"),
        ({"tables": ["missing.jsonl"] * 2}, (), 2, "There is no file missing.jsonl"),
        ({}, ("--plot", "split.pdf"), 2, "A picture cannot be written to split.pdf."),
    ],
)
def test_wrong_requests_are_one_message(split, changes, options, status, message):
    done = split(*options, **changes)
    assert (done.returncode, done.stdout) == (status, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_server_table_there_is_no_split(invoke, tables):
    done = invoke(
        *("split", EXAMPLE, "--pick", PICK, "--device", tables[0]),
        *("--bandwidth-mbps", 1, "--rtt-ms", 1),
    )
    assert done.returncode == 2
    assert "--server" in done.stderr


def test_table_of_another_space_is_named(split, tables, tmp_path):
    other = nas.load_space("squeezenet_tiny", image_size=8, channels=1).smallest
    path = tmp_path / "other.jsonl"
    write_table(path, kernels_of_parts(other.graph), lambda kernel: 1.0)
    done = split(tables=[tables[0], path])
    assert done.returncode == 1
    assert re.search(
        r"other\.jsonl lacks \d+ of the \d+ kernels .* table of another space", done.stderr
    )


@pytest.mark.slow
def test_build_times_kernels_of_the_table_of_this_machine(split, tmp_path, invoke):
    """ONNX Runtime's parts convert tensors that the whole network does not."""
    network = nas.open_run(EXAMPLE).architecture("p441")
    runtime = nas.open_runtime("onnxruntime")
    table = nas.LatencyTable.open_or_create(tmp_path / "here.jsonl", runtime)
    add_missing_kernels(table, [network.graph], runtime)
    both = [table.path, table.path]
    before = json.loads(split("--json", pick="p441", tables=both).stdout)
    assert before["unknown"]
    after = json.loads(split("--json", "--build", pick="p441", tables=both).stdout)
    assert after["unknown"] == {}
    assert len(after["cuts"]) == len(before["cuts"]) + 3 * len(before["unknown"])


@pytest.mark.slow
def test_build_leaves_the_table_of_another_machine(split, tables, tmp_path):
    copies = [shutil.copy(table, tmp_path) for table in tables]
    done = split("--build", tables=copies)
    assert done.returncode == 0, done.stderr
    assert "phone.jsonl is of another machine: nothing is added to it" in done.stderr
