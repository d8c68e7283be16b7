"""Whether splits of a network over a simulated link take as long as they are predicted to.

    python -m tests.benchmarks.split mobilenet_v2_1.0 --image-size 96 --cuts 4 --images 40

Builds a latency table of ONNX Runtime for the kernels of a published network with random weights,
and of both parts of some of its cuts. Then a process stands for the device and another one for the
server, both on this machine. Each runs its part, and waits before it sends as long as the link
would take: half a round trip, and the bytes over the bandwidth. Prints the median latency of the
images, beginning with the tensor that a device would have, against the prediction; it should be
within 10%. Run it on an idle machine with two cores or more.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

import nas
from nas import onnx_model
from nas.graph import Graph
from nas.latency import LatencyTable
from nas.latency.build import add_missing_kernels
from nas.plans.split import Link, find_cuts, halves, plan_split
from nas.plans.split_server import Answers, Server
from nas.plans.split_wire import TRANSFERS, connected, pack, receive, unpack
from nas.runtimes.onnxruntime.session import open_session
from nas.space.library import find_reference
from nas.torch_network import folded_weights

LINKS = (Link(1000, 0.5), Link(100, 2), Link(20, 10))

WARM_UP = 5
"""Images before those that count."""


def wait(link: Link, size_bytes: int) -> None:
    """Wait as long as a message takes in one direction."""
    time.sleep(link.rtt_ms / 2000 + 8e-6 * size_bytes / link.bandwidth_mbps)


def runner(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs an ONNX file on one thread."""
    session = open_session(path, 1)
    name = session.get_inputs()[0].name
    return lambda values: session.run(None, {name: values})[0]


def serve(path: Path, shape: tuple[int, ...], link: Link, ready: Connection) -> None:
    """Answer as `server.py` does, behind the link."""
    run = runner(path)

    def logits_of(values: np.ndarray) -> np.ndarray:
        logits = run(values)
        wait(link, len(pack(logits, "float32")))
        return logits

    with Server(("127.0.0.1", 0), partial(Answers, logits_of, shape)) as server:
        ready.send(server.server_address)
        server.serve_forever()


def measured_us(
    files: tuple[Path, Path], parts: tuple[Graph, Graph], transfer: str, link: Link, images: int
) -> float:
    """Return the median latency of an image in microseconds."""
    first, second = parts
    ours, theirs = multiprocessing.Pipe()
    arguments = (files[1], second.input_shape, link, theirs)
    process = multiprocessing.get_context("spawn").Process(target=serve, args=arguments)
    process.start()
    try:
        run = runner(files[0])
        image = np.random.default_rng(0).normal(size=(1, *first.input_shape)).astype(np.float32)
        seconds = []
        with connected(ours.recv()) as connection:
            for _ in range(WARM_UP + images):
                started = time.perf_counter()
                message = pack(run(image), transfer)
                wait(link, len(message))
                connection.sendall(message)
                unpack(receive(connection, second.output_shape[0]))
                seconds.append(time.perf_counter() - started)
        return 1e6 * statistics.median(seconds[WARM_UP:])
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", default="mobilenet_v2_1.0")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--cuts", type=int, default=4, help="cuts that are measured")
    parser.add_argument("--images", type=int, default=40, help="images of each measurement")
    parser.add_argument("--table", type=Path, help="table to continue; by default a new one")
    options = parser.parse_args()
    space, _ = find_reference(options.network)
    network = space.adapt(image_size=options.image_size).reference(options.network)
    graph, runtime = network.graph.folded, nas.open_runtime("onnxruntime")
    weights = folded_weights(nas.to_torch(network))
    with tempfile.TemporaryDirectory(prefix="nas-split-") as temporary:
        folder = Path(temporary)
        table = LatencyTable.open_or_create(options.table or folder / "here.jsonl", runtime)
        places = find_cuts(graph, [runtime])[0]
        chosen = np.linspace(0, len(places) - 1, options.cuts + 2).astype(int)[1:-1]
        cuts = {places[at]: halves(graph, places[at]) for at in chosen}
        wholes = [graph, *(part for parts in cuts.values() for part in parts)]
        add_missing_kernels(table, wholes, runtime)
        errors = []
        print("cut   sent     Mbit/s  round trip  predicted   measured  error")
        for position, parts in cuts.items():
            files = folder / "device.onnx", folder / "server.onnx"
            for path, part in zip(files, parts, strict=True):
                onnx_model.save(onnx_model.model(part, weights), path)
            for link in LINKS:
                plan = plan_split(network, table, table, link, {})
                for transfer in TRANSFERS:
                    predicted = plan.cut_at(position, transfer).latency_us(link)
                    us = measured_us(files, parts, transfer, link, options.images)
                    errors.append(predicted / us - 1)
                    print(
                        f"{position:<5} {transfer:<8} {link.bandwidth_mbps:6g} {link.rtt_ms:8g} ms "
                        f"{predicted / 1000:7.3f} ms {us / 1000:7.3f} ms {errors[-1]:+6.1%}",
                        flush=True,
                    )
        within = sum(abs(error) <= 0.1 for error in errors)
        print(f"within 10%: {within} of {len(errors)}")


if __name__ == "__main__":
    main()
