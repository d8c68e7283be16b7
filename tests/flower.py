"""Processes of an app for Flower, from the Python of an environment that has it.

NAS_REQUIRE_FLOWER names that Python; without it, tests that need it are skipped. `.ci/run` makes
such an environment. By hand:

    python -m venv flower
    flower/bin/pip install "flwr>=1.42,<2" torch safetensors pillow numpy
    NAS_REQUIRE_FLOWER=flower/bin/python python -m pytest tests/lifecycle/test_federation.py
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nas.lifecycle.federated_steps import read_round

SECONDS_OF_A_ROUND = 1800
"""How long a round may take: on a busy machine, to start Python alone takes a minute."""

_WEIGHTS = "    arrays = weights_of(network, has_norms=not is_private)\n"
"""The line in which a client reads its weights."""

_NAN_WEIGHTS = """\
    if context.node_config["name"] == "broken":
        arrays = {name: np.full_like(each, np.nan) for name, each in arrays.items()}
"""
"""Lines behind it that make the client `broken` send NaN."""


def flower_python() -> Path:
    """Return the Python that has Flower."""
    path = os.environ.get("NAS_REQUIRE_FLOWER")
    if not path:
        pytest.skip("NAS_REQUIRE_FLOWER names no Python with Flower")
    return Path(path)


class FlowerApp:
    """The processes of an app: a server, clients and `flwr run`, each with a log in its folder.

    Args:
        folder: the app.
        python: Python of the environment with Flower.
        has_nan: whether the client called `broken` sends NaN.
    """

    def __init__(self, folder: Path, python: Path, *, has_nan: bool = False) -> None:
        self.folder, self.weights = folder, folder / "federated.safetensors"
        self._python, self._running = python, dict[str, subprocess.Popen[bytes]]()
        with socket.socket() as own:
            own.bind(("127.0.0.1", 0))
            self.port = own.getsockname()[1]
        if has_nan:
            path = folder / "client_app.py"
            path.write_text(path.read_text().replace(_WEIGHTS, _WEIGHTS + _NAN_WEIGHTS))

    def start_server(self) -> None:
        """Start the server, and wait until it answers."""
        self._start("server", "server", "--port", self.port)
        self._wait(self._answers, "the server does not answer")

    def start_client(self, name: str, images: Path, *, port: int | None = None) -> None:
        """Start a client, which may connect to another port than that of the server."""
        self._start(name, "client", "--name", name, "--images", images, port=port)

    def run(self, **settings: object) -> None:
        """Start the training with settings of the app's run config."""
        values = (f"{key.replace('_', '-')}={value}" for key, value in settings.items())
        self._start("run", "run", "--run-config", " ".join(values))

    def wait_for_round(self, number: int) -> None:
        """Wait until the weights of a round are stored."""

        def is_stored() -> bool:
            return self.weights.is_file() and read_round(self.weights)[1]["rounds"] >= number

        self._wait(is_stored, f"round {number} is not stored")

    def kill(self, name: str) -> None:
        """Kill a part with all of its processes."""
        process = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def wait_for_log(self, name: str, text: str) -> list[str]:
        """Wait until a part has written a text, and return the lines with it."""
        path = self.folder / f"{name}.log"
        self._wait(lambda: text in path.read_text(), f"{path} has no {text!r}")
        return [line for line in path.read_text().splitlines() if text in line]

    def __enter__(self) -> FlowerApp:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._running):
            self.kill(name)

    def _start(self, name: str, part: str, *arguments: object, port: int | None = None) -> None:
        server = () if part == "server" else ("--server", f"127.0.0.1:{port or self.port}")
        command = [self._python, self.folder / "start.py", part, *server, *arguments]
        # Clients on one machine share its cores: with more threads they would wait for each other.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (self.folder / f"{name}.log").open("a") as log:
            self._running[name] = subprocess.Popen(
                list(map(str, command)),
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def _answers(self) -> bool:
        with socket.socket() as own:
            return own.connect_ex(("127.0.0.1", self.port)) == 0

    def _wait(self, has_happened: Callable[[], bool], problem: str) -> None:
        end = time.monotonic() + SECONDS_OF_A_ROUND
        while not has_happened():
            if time.monotonic() > end:
                raise TimeoutError(f"{problem}; see the logs in {self.folder}")
            time.sleep(0.1)
