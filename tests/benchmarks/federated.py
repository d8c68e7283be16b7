"""Federated fine-tuning with real processes of Flower, against training on all images in one place.

    python -m tests.benchmarks.federated MODEL --flower flower/bin/python --out FOLDER

MODEL is a model folder that was exported as `torch`. Test images of its data, which the run did not
train on, become darker. One part of them is shared out among the clients, in shares that a
Dirichlet distribution draws for each class; the rest judges. Prints the accuracy of the model,
after training on the images of all clients in one place, and after each round of the clients, and
the bytes that they sent and received.

`--kill` ends a client after the first round, `--nan` adds one that sends NaN, and `--restart` kills
the server after the first round and starts it again. The bytes are those of the loopback device;
this counts nothing else, and shows that the app needs no other network:

    unshare -n sh -c 'ip link set lo up; python -m tests.benchmarks.federated ...'
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import nas
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
)
from nas.lifecycle.federation import write_app
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


def sent_bytes() -> int:
    """Return the bytes that went through the loopback device."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--nan", action="store_true")
    parser.add_argument("--restart", action="store_true")
    options = parser.parse_args()
    card, model = ModelFolder(options.model).card, nas.load_model(options.model)
    how = model.preprocessing.model_dump(mode="json")
    data = load_data(card.data, how["reading"]["decoded_size"], options.model)
    test = data.test.take(np.random.default_rng(0).permutation(len(data.test)))
    pixels = (np.asarray(test.pixels[:]) * options.brightness).astype(np.uint8)
    field = pixels[: options.images], test.labels[: options.images]
    judge = (each[-options.judging :] for each in (pixels, test.labels))
    judge_pixels, judge_labels = judge
    network = TorchSource(model.network.graph).module(model.network.tensors())

    def report(what: str) -> None:
        right = count_right(network, judge_pixels, judge_labels, how)
        print(f"{what}: accuracy {right / len(judge_labels):.3f}", flush=True)

    report("the model")
    parts = shares(field[1], options.clients, options.concentration)
    print("images of the clients:", ", ".join(str(len(part)) for part in parts))
    trained = np.concatenate([part[np.arange(len(part)) % JUDGING_SHARE != 0] for part in parts])
    fine_tune(
        network,
        *(each[trained] for each in field),
        how,
        epochs=options.rounds,
        learning_rate=options.learning_rate,
        mu=0.0,
        trains_norms=True,
        seed=0,
    )
    report(f"all images in one place, {options.rounds} epochs")
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
        before = sent_bytes()
        app.start_server()
        for name in names:
            app.start_client(name, options.out / name)
        settings = {"rounds": options.rounds, "learning_rate": options.learning_rate}
        app.run(**settings)
        for number in range(1, options.rounds + 1):
            app.wait_for_round(number)
            arrays = list(read_round(app.weights)[0].values())
            load_weights(network, arrays, norms, has_norms=True)
            report(f"round {number}, {sent_bytes() - before:,} bytes")
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
