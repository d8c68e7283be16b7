"""Apps for federated fine-tuning: what their two sides do, and the way back of the weights."""

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import norm

from nas.deploy.folder import ModelFolder
from nas.deploy.formats import model_format
from nas.deploy.networks import load_trained
from nas.deploy.saved_model import load_model, write_model
from nas.deploy.script_steps import as_input
from nas.deploy.torch_source import TorchSource
from nas.errors import CheckpointError, DataError, ExportError, RequestError
from nas.lifecycle.federated_steps import (
    Rounds,
    count_right,
    fine_tune,
    load_weights,
    norms_of,
    proximal_term,
    read_folder,
    read_round,
    refusal,
    weights_of,
    write_round,
)
from nas.lifecycle.federation import APP_FILES, take_back, write_app
from nas.lifecycle.version import version_of
from nas.opened_run import open_run
from nas.supernet import checkpoint
from tests import markdown
from tests.commands import document
from tests.flower import FlowerApp, flower_python
from tests.plans.cases import change, copy_of_example


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model of the example run, with the files of format `torch`."""
    run = open_run(copy_of_example(tmp_path_factory.mktemp("federated") / "run", has_files=True))
    folder = ModelFolder(run.path / "models" / "tb41")
    with folder.staging() as staging:
        write_model(load_trained(run, "tb41"), staging / "network.safetensors")
        card = json.loads((folder.path / "card.json").read_text())
        card["files"] = [each for each in card["files"] if each["format"] != "onnx-int8"]
        (staging / "card.json").write_text(json.dumps(card))
        folder.publish(staging)
    return run, folder.path


@pytest.fixture
def app(exported, tmp_path):
    write_app(exported[1], 3, tmp_path / "app")
    return tmp_path / "app"


@pytest.fixture
def network(exported):
    """The plain module of the model, as an app has it."""
    model = load_model(exported[1])
    return TorchSource(model.network.graph).module(model.network.tensors())


def write_images(folder, run, positions):
    """Write test images of a run as a client has them."""
    test = run.data.test
    for at in positions:
        path = folder / run.data.classes[test.labels[at]] / f"{at}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(test.pixels[at]).squeeze()).save(path)


def preprocessing_of(folder):
    return json.loads((folder / "preprocessing.json").read_text())


def test_files_of_an_app_do_without_this_package(app, tmp_path, exported):
    run, _ = exported
    write_images(tmp_path / "photos", run, range(30))
    settings = tomllib.loads((app / "pyproject.toml").read_text())
    assert settings["tool"]["flwr"]["app"]["config"]["clients"] == 3
    for name in (*APP_FILES.values(), "steps.py"):
        text = (app / name).read_text()
        compile(text, name, "exec")
        assert "nas." not in "".join(line for line in text.splitlines() if "import" in line)
        defined = [
            node.name
            for node in ast.parse(text).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        assert len(set(defined)) == len(defined), "no text of a module hides a part of another"
    program = """
import sys; sys.modules["nas"] = None
import json, pathlib, network, steps
preprocessing = json.loads(pathlib.Path("preprocessing.json").read_text())
pixels, labels = steps.read_folder(pathlib.Path(sys.argv[1]), preprocessing)
print(len(labels), steps.count_right(network.load(), pixels, labels, preprocessing))
"""
    command = [sys.executable, "-c", program, tmp_path / "photos"]
    environment = {**os.environ, "PYTHONPATH": str(app)}
    done = subprocess.run(command, cwd=app, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    test = run.data.test
    logits = load_trained(run, "tb41").pixel_logits(test.pixels[:30])
    assert done.stdout.split() == ["30", str((logits.argmax(1) == test.labels[:30]).sum())]


def test_start_switches_telemetry_off_and_names_the_program(app, tmp_path):
    programs, photos = tmp_path / "bin", tmp_path / 'my "photos"'
    programs.mkdir()
    photos.mkdir()
    (programs / "python").symlink_to(sys.executable)
    for name in ("flower-superlink", "flower-supernode", "flwr"):
        program = programs / name
        program.write_text(
            '#!/bin/sh\necho "$FLWR_TELEMETRY_ENABLED $FLWR_DISABLE_UPDATE_CHECK"\n'
            'for each in "$@"; do echo "$each"; done\n'
        )
        program.chmod(0o755)

    def started(*arguments):
        command = [programs / "python", app / "start.py", *arguments]
        environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        telemetry, *printed = done.stdout.splitlines()
        assert telemetry == "0 1"
        return printed

    server = started("server", "--host", "0.0.0.0")
    assert server[:2] == ["--disable-runtime-dependency-installation", "--insecure"]
    assert server[-2:] == ["--host", "0.0.0.0"]
    assert "--insecure" not in started("server", "--ssl-certfile", "own.pem")
    client = started("client", "--name", "north", "--images", photos, "--server", "here:9000")
    values = client[client.index("--node-config") + 1]
    assert tomllib.loads(values.replace(" images", "\nimages")) == {
        "name": "north",
        "images": str(photos),
    }
    assert client[: client.index("--node-config")] == ["--superlink", "here:9000", "--insecure"]
    assert started("run", "--run-config", "rounds=3")[-2:] == ["--run-config", "rounds=3"]
    home = tomllib.loads((app / ".flwr" / "config.toml").read_text())
    assert home["superlink"]["server"] == {"address": "127.0.0.1:8000", "insecure": True}


def test_clients_read_folders_of_classes(tmp_path, exported, capsys):
    run, folder = exported
    preprocessing = preprocessing_of(folder)
    write_images(tmp_path, run, range(12))
    (tmp_path / "3").mkdir(exist_ok=True)
    (tmp_path / "3" / "broken.png").write_bytes(b"no image")
    pixels, labels = read_folder(tmp_path, preprocessing)
    order = sorted(range(12), key=lambda at: (run.data.test.labels[at], f"{at}.png"))
    assert labels.tolist() == [run.data.test.labels[at] for at in order]
    np.testing.assert_array_equal(pixels, run.data.test.pixels[:12][order])
    assert "broken.png is left out" in capsys.readouterr().err
    (tmp_path / "cat").mkdir()
    assert len(read_folder(tmp_path, preprocessing)[1]) == 12, "a folder without images is empty"
    shutil.copyfile(next(tmp_path.glob("[!3]/*.png")), tmp_path / "cat" / "0.png")
    with pytest.raises(DataError, match="the folder cat with images; expected folders named 0, 1"):
        read_folder(tmp_path, preprocessing)


def test_a_client_folder_is_read_as_that_of_a_job(tmp_path, exported):
    """Junk, names as a Mac writes them, folders of dates, one class, and too few images."""
    run, folder = exported
    preprocessing = preprocessing_of(folder)
    preprocessing["classes"][3] = "caf\u00e9"
    test = run.data.test
    rows = {label: np.flatnonzero(test.labels == label)[:4] for label in (0, 3)}
    for label, name in ((0, "0/2024-05-01"), (3, unicodedata.normalize("NFD", "caf\u00e9"))):
        (tmp_path / name).mkdir(parents=True)
        for at in rows[label]:
            Image.fromarray(test.pixels[at].squeeze()).save(tmp_path / name / f"{at}.png")
    (tmp_path / "@eaDir" / "0").mkdir(parents=True)
    (tmp_path / "@eaDir" / "0" / "thumb.png").write_bytes(b"junk")
    for name in ("0/.DS_Store", "0/Thumbs.db", ".ipynb_checkpoints"):
        (tmp_path / name).write_bytes(b"junk")
    pixels, labels = read_folder(tmp_path, preprocessing)
    assert labels.tolist() == [0] * 4 + [3] * 4
    expected = np.concatenate([test.pixels[rows[label]] for label in (0, 3)])
    assert sorted(map(bytes, pixels)) == sorted(map(bytes, expected))
    shutil.rmtree(tmp_path / "0")
    assert read_folder(tmp_path, preprocessing)[1].tolist() == [3] * 4
    for file in [*next(tmp_path.glob("caf*")).iterdir()][1:]:
        file.unlink()
    with pytest.raises(DataError, match="has 1 image that can be used; expected 3 or more"):
        read_folder(tmp_path, preprocessing)


def test_proximal_term_is_half_the_squared_distance_and_pulls_back():
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 2, generator=rng), torch.randn(4, generator=rng)]
    own = [(each + torch.randn(each.shape, generator=rng)).requires_grad_() for each in start]
    term = proximal_term(own, start, mu=0.3)
    flat = torch.cat([(a - b).flatten() for a, b in zip(own, start, strict=True)])
    assert term.item() == pytest.approx(0.15 * (flat @ flat).item())
    term.backward()
    for each, sent in zip(own, start, strict=True):
        torch.testing.assert_close(each.grad, 0.3 * (each.detach() - sent))


@pytest.mark.parametrize("trains_norms", [False, True])
def test_fine_tuning_learns_and_leaves_the_norms_if_asked(network, exported, trains_norms):
    run, folder = exported
    preprocessing, test = preprocessing_of(folder), run.data.test
    # Other classes than the network knows, so that there is something to learn.
    pixels, labels = np.asarray(test.pixels[:65]), (test.labels[:65] + 1) % 10
    sent = {name: each.copy() for name, each in weights_of(network, has_norms=False).items()}
    norms, distances = norms_of(network), {}
    for mu in (0.0, 5.0):
        load_weights(network, list(sent.values()), norms, has_norms=False)
        before = count_right(network, pixels, labels, preprocessing)
        fine_tune(
            network,
            pixels,
            labels,
            preprocessing,
            epochs=20,
            learning_rate=0.01,
            mu=mu,
            trains_norms=trains_norms,
            seed=0,
        )
        own = weights_of(network, has_norms=False)
        distances[mu] = sum(((own[name] - sent[name]) ** 2).sum() for name in sent)
        if not mu:
            assert count_right(network, pixels, labels, preprocessing) > before + 8
        assert (norms_of(network) == norms) == (not trains_norms)
    assert 0 < distances[5.0] < distances[0.0] / 2


@pytest.mark.parametrize("has_norms", [False, True])
def test_weights_survive_the_network_and_the_file(network, tmp_path, has_norms):
    weights = weights_of(network, has_norms=has_norms)
    assert any("running_var" in name for name in weights) == has_norms
    changed = {name: each + 1 for name, each in weights.items()}
    path = tmp_path / "federated.safetensors"
    write_round(path, changed, {"rounds": 3})
    stored, record = read_round(path)
    assert record == {"rounds": 3}
    assert list(stored) == list(changed)
    norms = norms_of(network)
    load_weights(network, list(stored.values()), norms, has_norms=has_norms)
    for name, each in weights_of(network, has_norms=has_norms).items():
        np.testing.assert_array_equal(each, changed[name])
    assert (norms_of(network) == norms) == (not has_norms)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda arrays: arrays[0].fill(np.nan), "1 of its 2 tensors"),
        (lambda arrays: arrays[1].__setitem__(0, -np.inf), "1 of its 2 tensors"),
        (lambda arrays: arrays.pop(), "other shapes"),
        (lambda arrays: arrays.reverse(), "other shapes"),
    ],
)
def test_answers_that_cannot_be_averaged_are_refused(broken, reason):
    sent = [np.ones((2, 3), np.float32), np.ones(4, np.float32)]
    answer = [each + 1 for each in sent]
    assert refusal(answer, sent, 10) == refusal(answer, sent, 1, is_private=True) == ""
    assert "it trained nothing" in refusal(sent, sent, 10)
    assert "counts 2 times" in refusal(answer, sent, 2, is_private=True)
    assert "images is nan" in refusal(answer, sent, float("nan"))
    assert "images is 0" in refusal(answer, sent, 0)
    broken(answer)
    assert reason in refusal(answer, sent, 10)


@pytest.mark.parametrize("noise", [0.1, 1.0, 8.0])
def test_documented_epsilon_holds_for_other_images_of_a_client(noise):
    """By the exact curve of the Gaussian mechanism (Balle and Wang 2018, theorem 8).

    A clipped change may become its opposite, which is twice as far as none.
    """
    text = markdown.ROOT.joinpath("docs", "after-shipment.md").read_text(encoding="utf-8")
    words = " ".join(text.split())
    (factor,) = re.findall(r"`r` is `(\d+) rounds / noise\^2`", words)
    delta, shift = 1e-5, 2 / noise

    def epsilon(r: float) -> float:
        return r + 2 * math.sqrt(r * math.log(1 / delta))

    def exact_delta(epsilon: float) -> float:
        first = norm.cdf(shift / 2 - epsilon / shift)
        return first - math.exp(epsilon + norm.logcdf(-shift / 2 - epsilon / shift))

    stated = int(factor) / noise**2
    assert exact_delta(epsilon(stated)) <= delta
    assert exact_delta(epsilon(stated / 4)) > delta  # As if the client had no change instead.
    if noise == 0.1:
        assert f"`epsilon` is {epsilon(stated):.0f} after one round" in words


SETTINGS = {"model": "0" * 64, "noise": 0.5, "secure-aggregation": False, "clients": 3}


def test_rounds_are_counted_and_continued(tmp_path):
    path, weights = tmp_path / "federated.safetensors", {"a": np.zeros(3), "b": np.zeros((2, 2))}
    rounds = Rounds(path, weights, SETTINGS)
    assert (rounds.done, rounds.weights, path.exists()) == (0, weights, False)
    for number in (1, 2):
        rounds.store([np.full(3, number), np.full((2, 2), -number)])
    # Another number of clients is no other noise for each.
    again = Rounds(path, weights, {**SETTINGS, "clients": 2})
    assert again.done == 2
    assert again.weights["b"].tolist() == [[-2, -2], [-2, -2]]


@pytest.mark.parametrize(
    ("changes", "weights", "message"),
    [
        ({"model": "1" * 64}, {"a": (3,)}, "another model"),
        ({"noise": 0.4}, {"a": (3,)}, "rounds with noise = 0.5, and this run has 0.4"),
        ({"secure-aggregation": True}, {"a": (3,)}, "rounds with secure-aggregation = False"),
        ({}, {"b": (3,)}, "tensor a has shape (3,), expected None"),
        ({}, {"a": (3,), "b": (1,)}, "tensor b has shape None, expected (1,)"),
        ({}, {"a": (3, 1)}, "tensor a has shape (3,), expected (3, 1)"),
    ],
)
def test_rounds_of_something_else_are_refused(tmp_path, changes, weights, message):
    path = tmp_path / "federated.safetensors"
    Rounds(path, {"a": np.zeros(3)}, SETTINGS).store([np.ones(3)])
    with pytest.raises(ValueError, match=re.escape(message)):
        Rounds(path, {name: np.zeros(shape) for name, shape in weights.items()}, SETTINGS | changes)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match="is damaged"):
        Rounds(path, {"a": np.zeros(3)}, SETTINGS)


def test_app_needs_files_for_torch_clients_and_room(exported, tmp_path):
    run, folder = exported
    with pytest.raises(RequestError, match=r"has no network\.safetensors"):
        write_app(run.path / "models" / "m37e", 3, tmp_path / "app")
    with pytest.raises(RequestError, match="1 clients"):
        write_app(folder, 1, tmp_path / "app")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "notes").touch()
    with pytest.raises(RequestError, match="is not empty"):
        write_app(folder, 2, tmp_path / "app")


def test_an_app_starts_from_weights_that_did_not_learn_what_judges(exported, tmp_path):
    _, folder = exported
    model = ModelFolder(shutil.copytree(folder, tmp_path / "tb41"))
    card = json.loads((folder / "card.json").read_text())
    with model.staging() as staging:
        card["refit"] = {"images": 9, "epochs": 1, "seconds": 1.0}
        (staging / "card.json").write_text(json.dumps(card))
        model.publish(staging)
    with pytest.raises(RequestError, match=r"has no judged\.safetensors.* of the run"):
        write_app(model.path, 3, tmp_path / "app")
    tensors, record = checkpoint.read(folder / "weights.safetensors")
    judged = {name: 2 * each for name, each in tensors.items()}
    fields = record.model_dump(exclude={"schema_version", "sha256"}, exclude_none=True)
    checkpoint.write(model.path / "judged.safetensors", judged, fields)
    write_app(model.path, 3, tmp_path / "app")
    names = TorchSource(load_model(folder).network.graph).tensor_names
    own = load_file(tmp_path / "app" / "network.safetensors")
    assert own.keys() == set(names.values())
    assert all(torch.equal(own[name], judged[key]) for key, name in names.items())


@pytest.fixture
def stored(app, network, tmp_path):
    """Weights as the server of the app stores them, and what they are in the network."""
    rng = np.random.default_rng(0)
    weights = {
        name: each * rng.normal(1, 0.02, each.shape).astype(np.float32)
        for name, each in weights_of(network, has_norms=True).items()
    }
    config = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    record = {"schema": 1, "model": config["model"], "rounds": 4, "settings": config}
    write_round(tmp_path / "federated.safetensors", weights, record)
    return tmp_path / "federated.safetensors", weights, record


@pytest.mark.slow
def test_weights_come_back_as_the_next_version(exported, stored, network, tmp_path, invoke):
    run, folder = exported
    path, weights, _ = stored
    out = tmp_path / "new"
    printed = document(invoke("federate", folder, "--weights", path, "--out", out, "--json"))
    assert printed["version"] == "1.1"
    version = version_of(out)
    assert (version.parent, version.comparison.now) == ("tb41", "tb41 1.1")
    card = ModelFolder(out).card
    assert (card.id, version.comparison.before) == ("tb41", "tb41 1.0")
    assert card.recipe["federated"]["rounds"] == 4
    # The table of the device is not at hand, so that TVM has nothing to compile with.
    assert [each.format for each in card.files] == ["onnx"]
    ModelFolder(out).require_unchanged()
    verified = invoke("verify", out)
    assert verified.returncode == 0, verified.stderr
    # The temperature divides the logits, so that each is the same multiple of what is expected.
    load_weights(network, list(weights.values()), norms_of(network), has_norms=True)
    pixels = np.asarray(run.data.test.pixels[:20])
    images = as_input(pixels, preprocessing_of(folder))
    expected = network(torch.from_numpy(images)).detach().numpy()
    logits = model_format("onnx").load(out / "model.onnx").logits(images)
    scale = (logits * expected).sum() / (expected**2).sum()
    np.testing.assert_allclose(logits, scale * expected, atol=1e-3 * np.abs(logits).max())


@pytest.mark.slow
def test_threshold_is_chosen_with_the_images_of_no_class(exported, stored, tmp_path, invoke):
    """Without all of them, more would be answered than the accuracy allows."""
    run, path = exported[0], stored[0]
    own, others = tmp_path / "run", tmp_path / "others"
    shutil.copytree(run.path, own)
    others.mkdir()
    for at in range(4):  # As sure as any digit is, and of no class.
        Image.fromarray(np.asarray(run.data.test.pixels[at]).squeeze()).save(others / f"{at}.png")
    folder = ModelFolder(own / "models" / "tb41")
    change(own / "run.json", job__data__unknown=str(others))
    with folder.staging() as staging:
        shutil.copy2(folder.path / "card.json", staging)
        asked = {"min_confidence": 0.5, "min_accuracy": 0.9, "images": 240}
        known = {"answered": 200, "right": 190, "unknown": 4, "unknown_answered": 1}
        change(staging / "card.json", threshold={**asked, **known})
        folder.publish(staging)
    done = invoke("federate", folder.path, "--weights", path, "--out", tmp_path / "new")
    threshold = ModelFolder(tmp_path / "new").card.threshold
    assert f"The threshold: {threshold.summary}." in " ".join(done.stdout.split())
    assert (threshold.unknown, threshold.min_accuracy) == (4, 0.9)
    (others / "0.png").unlink()
    with pytest.raises(DataError, match="chosen with 4 images of no class, and 3 are here"):
        take_back(folder.path, path, tmp_path / "other")
    with pytest.raises(DataError, match="chosen with 4 images of no class, and 0 are here"):
        take_back(shutil.copytree(folder.path, tmp_path / "copy"), path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    shutil.rmtree(others)
    with folder.staging() as staging:
        shutil.copy2(folder.path / "card.json", staging)
        change(staging / "card.json", threshold=None)
        folder.publish(staging)
    take_back(folder.path, path, tmp_path / "plain")
    assert ModelFolder(tmp_path / "plain").card.threshold is None


def test_other_weights_are_refused(exported, stored, tmp_path):
    _, folder = exported
    path, weights, record = stored
    write_round(path, weights, {**record, "model": "0" * 64})
    with pytest.raises(RequestError, match="weights of another model"):
        take_back(folder, path, tmp_path / "new")
    first = next(iter(weights))
    write_round(path, {**weights, first: np.full_like(weights[first], np.inf)}, record)
    with pytest.raises(CheckpointError, match=f"'{first}' has values that are not finite"):
        take_back(folder, path, tmp_path / "new")
    write_round(path, {name: each for name, each in weights.items() if name != first}, record)
    with pytest.raises(CheckpointError, match=f"has no tensor '{first}'"):
        take_back(folder, path, tmp_path / "new")
    path.write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError, match="is not readable"):
        take_back(folder, path, tmp_path / "new")
    with pytest.raises(RequestError, match="is no file"):
        take_back(folder, tmp_path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_weights_that_are_wrong_too_often_are_not_exported(exported, stored, tmp_path):
    _, folder = exported
    path, weights, record = stored
    write_round(path, {name: np.zeros_like(each) for name, each in weights.items()}, record)
    with pytest.raises(ExportError, match="are wrong with tb41 1.1"):
        take_back(folder, path, tmp_path / "new", max_negative_flips=0.5)
    assert not (tmp_path / "new").exists()


def test_command_writes_an_app_or_takes_weights(exported, tmp_path, invoke):
    _, folder = exported
    done = invoke("federate", folder, "--clients", 2, "--out", tmp_path / "app")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "app" / "start.py").is_file()
    both = invoke("federate", folder, "--out", tmp_path / "other")
    assert (both.returncode, both.stdout) == (2, "")
    assert "either --clients or --weights" in both.stderr
    options = ("--clients", 2, "--max-negative-flips", 0.1, "--out", tmp_path / "other")
    assert invoke("federate", folder, *options).returncode == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.long
def test_real_processes_average_and_leave_a_broken_client_out(exported, app, tmp_path, network):
    python = flower_python()
    for number, name in enumerate(("one", "two", "broken")):
        write_images(tmp_path / name, exported[0], range(number, 90, 3))
    with FlowerApp(app, python, has_nan=True) as flower:
        flower.start_server()
        for name in ("one", "two", "broken"):
            flower.start_client(name, tmp_path / name)
        flower.run(rounds=2, round_seconds=300)
        flower.wait_for_round(1)
        flower.kill("server")  # It continues with the round that it stored.
        flower.start_server()
        flower.run(rounds=2, round_seconds=300)
        flower.wait_for_round(2)
        flower.wait_for_log("run", "1 of 2 rounds are done")
        flower.wait_for_log("run", "Client broken (node")
    stored, record = read_round(flower.weights)
    assert record["settings"]["clients"] == 3
    before = weights_of(network, has_norms=True)
    assert all(np.isfinite(each).all() for each in stored.values())
    assert any((each != before[name]).any() for name, each in stored.items())


def test_noise_of_flower_hides_each_client(app, tmp_path):
    """Measured against a client's share of the average, the noise is never less than asked for."""
    noise, clip, clients = 0.5, 3.0, 4
    done = subprocess.run(
        [flower_python(), Path(__file__).with_name("private_rounds.py").absolute()],
        cwd=app,
        env={**os.environ, "PYTHONPATH": str(app)},
        input=json.dumps([noise, clip, clients]),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    answers = {row["case"]: row for row in rows}
    assert [name for name, row in answers.items() if row["stored"]] == ["all"]
    deviation, share = answers["all"]["deviation"], answers["all"]["share"]
    assert deviation == pytest.approx(noise * clip / clients, rel=0.01)
    assert share == pytest.approx(clip / clients, rel=1e-3)
    assert deviation / share == pytest.approx(noise, rel=0.02)
