"""The life of a model on one machine: from its training to an update that goes wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nas.deploy.saved_model import load_model
from nas.deploy.torch_source import TorchSource
from nas.lifecycle.federated_steps import (
    fine_tune,
    load_weights,
    norms_of,
    read_folder,
    refusal,
    weights_of,
    write_round,
)
from nas.opened_run import open_run
from tests.commands import document, run_nas
from tests.flower import FlowerApp
from tests.lifecycle.bundles import contents, rebundled, write_keys
from tests.plans.cases import copy_of_example

ROUNDS = 4

DARKNESS = 0.45
"""What pixel values in the field are multiplied by: a camera behind a dirty glass."""


def write_images(folder, images, classes, positions, factor):
    """Write images of a dataset to a folder for each class; return their paths."""
    paths = []
    for at in positions:
        paths.append(folder / classes[images.labels[at]] / f"{at}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(images.pixels[at]).squeeze() * factor
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


class Device:
    """A device: a folder in which versions are installed, and a log of what it saw."""

    def __init__(self, folder: Path, public_key: Path) -> None:
        self.folder, self._key = folder, public_key
        self.current = folder / "current"

    def install(self, bundle: Path, *options: str) -> subprocess.CompletedProcess[str]:
        script = bundle.with_suffix(".py")
        script.write_bytes(contents(bundle)["install.py"])
        key = () if "--unsigned" in options else ("--public-key", self._key)
        options = [each for each in options if each != "--unsigned"]
        command = [sys.executable, script, bundle, "--to", self.folder, *key, *options]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)

    @property
    def version(self) -> str:
        return json.loads((self.current / "manifest.json").read_text())["version"]

    def see(self, paths, log: Path) -> float:
        """Classify images and log them; return the share of the answers that are right."""
        command = [sys.executable, self.current / "run.py", *paths, "--json", "--log", log]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        answers = [int(np.argmax(each["logits"])) for each in json.loads(done.stdout)]
        return float(
            np.mean(
                [each == int(path.parent.name) for each, path in zip(answers, paths, strict=True)]
            )
        )


def federated(app: Path, first: Path, clients: list[Path]) -> Path:
    """Fine-tune on the images of clients; return the file of the weights.

    Processes of Flower do it where NAS_REQUIRE_FLOWER names a Python that has it. Otherwise the
    steps of the app run here one after the other, with a plain average of the weights.
    """
    if python := os.environ.get("NAS_REQUIRE_FLOWER"):
        with FlowerApp(app, Path(python)) as processes:
            processes.start_server()
            for at, images in enumerate(clients):
                processes.start_client(f"client{at}", images)
            processes.run(rounds=ROUNDS, epochs=2)
            processes.wait_for_round(ROUNDS)
        return processes.weights
    preprocessing = json.loads((app / "preprocessing.json").read_text())
    model = load_model(first)
    network = TorchSource(model.network.graph).module(model.network.tensors())
    # Copies: the arrays share the memory of the network, which is trained below.
    weights = {name: each.copy() for name, each in weights_of(network, has_norms=True).items()}
    norms = norms_of(network)
    own = [read_folder(images, preprocessing) for images in clients]
    for _ in range(ROUNDS):
        answers = []
        for seed, (pixels, labels) in enumerate(own):
            load_weights(network, list(weights.values()), norms, has_norms=True)
            settings = {"epochs": 2, "learning_rate": 0.01, "mu": 0.0, "trains_norms": True}
            fine_tune(network, pixels, labels, preprocessing, seed=seed, **settings)
            answer = [each.copy() for each in weights_of(network, has_norms=True).values()]
            assert refusal(answer, list(weights.values()), len(labels)) == ""
            answers.append((len(labels), answer))
        total = sum(count for count, _ in answers)
        for at, name in enumerate(list(weights)):
            weights[name] = sum(count / total * arrays[at] for count, arrays in answers)
    path = app / "federated.safetensors"
    settings = {"schema": 1, "rounds": ROUNDS, "settings": {}}
    text = (app / "pyproject.toml").read_text()
    digest = text.split('model = "')[1].split('"')[0]
    write_round(path, weights, {**settings, "model": digest})
    return path


@pytest.mark.slow
def test_the_whole_life_of_a_model(tmp_path):
    # Train and ship the first version.
    run = open_run(copy_of_example(tmp_path / "first", has_files=True))
    [record] = run.retrain("m932", epochs=6, from_scratch=True, progress=None)
    first = run.path / "models" / record.id
    document(run_nas("export", run.path, "--pick", record.id, "--format", "torch,onnx", "--json"))
    private, public = write_keys(tmp_path, "own")
    bundle, device = tmp_path / "1.0.tar", Device(tmp_path / "device", public)
    document(run_nas("bundle", first, "--out", bundle, "--key", private, "--json"))
    assert device.install(bundle).returncode == 0
    assert device.version == "1.0"

    # The field is like the data, and then its images become dark.
    test, classes = run.data.test, run.data.classes
    bright = write_images(tmp_path / "bright", test, classes, range(100), 1)
    dark = write_images(tmp_path / "dark", test, classes, range(100), DARKNESS)
    accuracy = device.see(bright, tmp_path / "bright.jsonl")
    assert run_nas("drift", first, tmp_path / "bright.jsonl").returncode == 0
    dark_accuracy = device.see(dark, tmp_path / "dark.jsonl")
    drift = run_nas("drift", first, tmp_path / "dark.jsonl", "--json")
    assert drift.returncode == 1
    assert "brightness" in json.loads(drift.stdout)["moved"]

    # Two owners of dark images fine-tune the model without sending an image.
    app = tmp_path / "app"
    document(run_nas("federate", first, "--clients", "2", "--out", app, "--json"))
    train, clients = run.data.train, [tmp_path / "here", tmp_path / "there"]
    for at, folder in enumerate(clients):
        write_images(folder, train, classes, range(at, 400, 2), DARKNESS)
    weights = federated(app, first, clients)
    second = tmp_path / "second"
    taken = document(run_nas("federate", first, "--weights", weights, "--out", second, "--json"))
    assert taken["version"] == "1.1"

    # The update is compared, signed and installed, and sees in the dark.
    comparison = document(run_nas("compare", first, second, "--json"))
    assert (comparison["before"], comparison["now"]) == (str(first), str(second))
    update = tmp_path / "1.1.tar"
    document(run_nas("bundle", second, "--out", update, "--key", private, "--json"))
    assert device.install(update).returncode == 0
    assert device.version == "1.1"
    assert device.see(dark, tmp_path / "later.jsonl") > dark_accuracy

    # Bad updates leave the version that runs.
    broken = rebundled(update, tmp_path / "1.2.tar", {"model.onnx": b"broken"}, version="1.2")
    unsigned = device.install(broken)
    assert unsigned.returncode == 1
    assert "did not sign the bundle" in unsigned.stderr
    untested = device.install(broken, "--unsigned")
    assert untested.returncode == 1
    assert "The version that was installed stays." in untested.stderr
    assert device.version == "1.1"

    # Back to the first version on purpose.
    assert device.install(bundle).returncode == 1
    assert device.install(bundle, "--allow-older").returncode == 0
    assert device.version == "1.0"
    assert device.see(bright, tmp_path / "end.jsonl") == accuracy
