"""Federated fine-tuning with real processes of Flower, against training on all images in one place.

    python -m tests.benchmarks.federated MODEL --flower flower/bin/python --out FOLDER

MODEL is a model folder that was exported as `torch`. Test images of its data, which the run did not
train on, become darker. One part of them is shared out among the clients, in shares that a
Dirichlet distribution draws for each class; the rest judges. Prints the accuracy of the model,
after as many epochs on the images of all clients in one place, after as many on those of each
client alone, and after each round of the clients, on the darker images and on the usual ones; and
the bytes that all clients sent and received.

`--set noise=0.1` and the like set what the pyproject.toml of the app has.
`--kill` ends a client after the first round, `--nan` adds one that sends NaN, and `--restart` kills
the server after the first round and starts it again.
"""

import argparse
import asyncio
import contextlib
import copy
import threading
from pathlib import Path

import numpy as np
from PIL import Image

from nas.data import ImageDataset
from nas.deploy.folder import ModelFolder
from nas.deploy.torch_source import TorchSource
from nas.deploy.verify import load_data
from nas.lifecycle.federated_steps import (
    JUDGING_SHARE,
    count_right,
    fine_tune,
    load_weights,
    norms_of,
    read_round,
    weights_of,
)
from nas.lifecycle.federation import judged_model, write_app
from tests.flower import FlowerApp


def shares(labels: np.ndarray, clients: int, concentration: float) -> list[np.ndarray]:
    """Return the positions of the images of each client."""
    rng, parts = np.random.default_rng(0), [[] for _ in range(clients)]
    for label in np.unique(labels):
        own = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(rng.dirichlet([concentration] * clients))[:-1] * len(own)
        for part, positions in zip(parts, np.split(own, ends.astype(int)), strict=True):
            part.extend(positions)
    return [np.sort(part).astype(int) for part in parts]


def write_images(folder: Path, pixels: np.ndarray, labels: np.ndarray, data: ImageDataset) -> None:
    """Write images as a folder with a sub-folder for each class."""
    for at, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / data.classes[label] / f"{at:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(path)


class CountingProxy:
    """Passes connections of clients on to a server, and counts the bytes in both directions.

    Attributes:
        port: port for the clients.
        bytes: number of bytes.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port, self.bytes = server_port, 0
        loop = asyncio.new_event_loop()
        server = loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        threading.Thread(target=loop.run_forever, daemon=True).start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:  # The server was killed, and starts again.
            writer.close()
            return
        await asyncio.gather(self._copy(reader, other[1]), self._copy(other[0], writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while content := await reader.read(1 << 16):
                self.bytes += len(content)
                writer.write(content)
                await writer.drain()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--flower", type=Path, help="Python of an environment with Flower")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--images", type=int, default=5000, help="images of all clients together")
    parser.add_argument("--judging", type=int, default=5000, help="images that judge")
    parser.add_argument("--concentration", type=float, default=0.3, help="of the Dirichlet shares")
    parser.add_argument("--brightness", type=float, default=0.35)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of the app"
    )
    parser.add_argument("--only-rounds", action="store_true", help="nothing to compare them with")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--nan", action="store_true")
    parser.add_argument("--restart", action="store_true")
    options = parser.parse_args()
    settings = {"rounds": "5", "epochs": "1", "learning-rate": "0.01"}
    settings |= dict(each.split("=", 1) for each in options.set)
    rounds, epochs = int(settings["rounds"]), int(settings["epochs"])
    folder = ModelFolder(options.model)
    card, model = folder.card, judged_model(folder)
    how = model.preprocessing.model_dump(mode="json")
    data = load_data(card.data, how["reading"]["decoded_size"], options.model)
    test = data.test.take(np.random.default_rng(0).permutation(len(data.test)))
    usual = np.asarray(test.pixels[:])
    darker = (usual * options.brightness).astype(np.uint8)
    field = darker[: options.images], test.labels[: options.images]
    judging = slice(len(test.labels) - options.judging, None)
    network = TorchSource(model.network.graph).module(model.network.tensors())

    def report(what: str) -> None:
        labels = test.labels[judging]
        dark, light = (
            count_right(network, pixels[judging], labels, how) / len(labels)
            for pixels in (darker, usual)
        )
        print(f"{what}: accuracy {dark:.3f}, on the usual images {light:.3f}", flush=True)

    report("the model")
    start = copy.deepcopy(network.state_dict())
    parts = shares(field[1], options.clients, options.concentration)
    print("images of the clients:", ", ".join(str(len(part)) for part in parts))
    trained = [part[np.arange(len(part)) % JUDGING_SHARE != 0] for part in parts]
    places = {"all images in one place": np.concatenate(trained)}
    places |= {f"client {number} alone": part for number, part in enumerate(trained, 1)}
    for place, positions in places.items() if not options.only_rounds else ():
        fine_tune(
            network,
            *(each[positions] for each in field),
            how,
            epochs=rounds * epochs,
            learning_rate=float(settings["learning-rate"]),
            mu=0.0,
            trains_norms=True,
            seed=0,
        )
        report(f"{place}, {rounds * epochs} epochs")
        network.load_state_dict(start)
    if options.flower is None:
        return
    names = [f"client-{number}" for number in range(1, options.clients + 1)]
    for name, part in zip(names, parts, strict=True):
        write_images(options.out / name, field[0][part], field[1][part], data)
    if options.nan:
        names.append("broken")
        write_images(options.out / "broken", *(each[:100] for each in field), data)
    write_app(options.model, len(names), options.out / "app")
    norms = norms_of(network)
    with FlowerApp(options.out / "app", options.flower, has_nan=options.nan) as app:
        proxy = CountingProxy(app.port)
        app.start_server()
        for name in names:
            app.start_client(name, options.out / name, port=proxy.port)
        app.run(**settings)
        for number in range(1, rounds + 1):
            app.wait_for_round(number)
            weights = read_round(app.weights)[0]
            has_norms = len(weights) == len(weights_of(network, has_norms=True))
            load_weights(network, list(weights.values()), norms, has_norms=has_norms)
            to_and_fro = 2 * len(names) * sum(each.nbytes for each in weights.values())
            sent = f"{proxy.bytes:,} bytes, of which weights {number * to_and_fro:,}"
            report(f"round {number}, {sent}")
            if number == 1 and options.kill:
                app.kill(names[1])
            if number == 1 and options.restart:
                app.kill("server")
                app.start_server()
                app.run(**settings, clients=len(names) - options.kill)
        if options.nan:
            print("\n".join(app.wait_for_log("run", "is left out")))


if __name__ == "__main__":
    main()
