"""Run the second part of a split network: python server.py [--host HOST] [--port PORT]

It answers `device.py` over TCP. Nothing is encrypted, and anyone who can connect is answered: let
it listen where only the device can reach it. The `server.py` of a split network is this file with
the texts of the modules of `nas` that it imports.
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import socketserver
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nas.deploy.script_steps import LogitsOf, load_onnx, use_file
from nas.plans.split_wire import pack, receive, seconds, send, unpack

FOLDER = Path(__file__).resolve().parent


class Answers(socketserver.BaseRequestHandler):
    """Answers the messages of one connection, until it ends, falls silent or sends something else.

    Args:
        logits_of: runs the second part of the network.
        shape: channels, height and width of its input.
        idle_s: how long it waits for a message, and for the other side to take an answer.
        connection: what the server gives to a handler.
    """

    def __init__(
        self, logits_of: LogitsOf, shape: tuple[int, ...], idle_s: float, *connection: Any
    ) -> None:
        self.logits_of, self.shape, self.idle_s = logits_of, shape, idle_s
        super().__init__(*connection)

    def handle(self) -> None:
        """Receive tensors and send the logits of each."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while message := receive(self.request, math.prod(self.shape), self.idle_s):
                values = unpack(message).reshape(1, *self.shape)
                send(self.request, pack(self.logits_of(values), "float32"), self.idle_s)
        except (ValueError, OSError) as error:
            print(f"{self.client_address[0]}: {error}", flush=True)


class Server(socketserver.ThreadingTCPServer):
    """A server with a thread for each connection, at an address of IPv4 or IPv6."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: Any) -> None:
        own, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family = own[0]
        super().__init__((host, port), handler)


def main() -> None:
    """Answer until the process is stopped."""
    parser = argparse.ArgumentParser(description="Run the second part of a split network.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, default=8765, help="port; 0 for any free one")
    parser.add_argument(
        "--idle-seconds", type=seconds, default=300.0, help="when to leave a device that is silent"
    )
    options = parser.parse_args()
    path, model = FOLDER / "split.json", FOLDER / "server.onnx"
    split = use_file(path, lambda: json.loads(path.read_bytes()))
    shape, logits_of = tuple(split["shape"]), use_file(model, load_onnx, model)
    logits_of(np.zeros((1, *shape), np.float32))  # The first call takes longer.
    answers = partial(Answers, logits_of, shape, options.idle_seconds)
    try:
        server = Server(options.host, options.port, answers)
    except (OSError, OverflowError, UnicodeError) as error:
        sys.exit(f"{options.host}, port {options.port}: nothing can listen there ({error})")
    with server, suppress(KeyboardInterrupt):  # Ctrl-C is how it is stopped.
        host, port = server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        print(f"listening on {shown}:{port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
