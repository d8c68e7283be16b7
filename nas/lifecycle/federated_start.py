"""Start a part of federated fine-tuning, without telemetry.

    python start.py server
    python start.py client --name NAME --images FOLDER --server HOST:8000
    python start.py run --server HOST:8000

Further options are passed to flower-superlink, flower-supernode and flwr run. For connections with
TLS give `--ssl-certfile`, `--ssl-keyfile` and `--ssl-ca-certfile` to the server, and
`--root-certificates` to the others.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

HOME = FOLDER / ".flwr"

PROGRAMS = Path(sys.executable).parent


def main() -> None:
    """Become the program of Flower that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("server", "client", "run"))
    parser.add_argument("--server", default="127.0.0.1:8000", help="address of the server")
    parser.add_argument("--name", default=socket.gethostname(), help="name of the client")
    parser.add_argument("--images", type=Path, help="folder with a sub-folder for each class")
    parser.add_argument("--root-certificates", type=Path, help="certificates of a server with TLS")
    own, rest = parser.parse_known_args()
    HOME.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(HOME),
        "PATH": f"{PROGRAMS}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    certificates = own.root_certificates and str(own.root_certificates.resolve())
    trust = ["--root-certificates", certificates] if certificates else ["--insecure"]
    if own.part == "server":
        trust = [] if "--ssl-certfile" in rest else ["--insecure"]
        command = ["flower-superlink", "--disable-runtime-dependency-installation", *trust]
        # A server that was killed knows its clients again.
        command += ["--database", str(HOME / "server.db")]
    elif own.part == "client":
        if own.images is None or not own.images.is_dir():
            parser.error(f"--images {own.images}: expected a folder with a sub-folder per class")
        config = {"name": own.name, "images": str(own.images.resolve())}
        values = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        command = ["flower-supernode", "--superlink", own.server, *trust, "--node-config", values]
        command += ["--port", str(free_port())]
    else:
        write_address(own.server, certificates)
        command = ["flwr", "run", ".", "server", "--stream"]
    os.chdir(FOLDER)
    os.execve(PROGRAMS / command[0], [*command, *rest], environment)


def free_port() -> int:
    """Return a port of this machine that is free: each client needs one for itself."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def write_address(server: str, certificates: str | None) -> None:
    """Write where `flwr run` sends the app."""
    trust = f"root-certificates = {json.dumps(certificates)}" if certificates else "insecure = true"
    text = f'[superlink]\ndefault = "server"\n\n[superlink.server]\naddress = "{server}"\n{trust}\n'
    (HOME / "config.toml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
