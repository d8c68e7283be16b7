"""Install a bundle on a device: python install.py BUNDLE --to FOLDER [--public-key KEY]

The link FOLDER/current leads to the version that runs. It is switched at once, after the new
version has classified the images in its folder as it should. Whenever this script is stopped, the
link leads to a whole version, and the same command continues.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shlex
import shutil
import statistics
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path

from nas.lifecycle.unpacking import (
    MANIFEST_FILE,
    BundleError,
    check_signature,
    numbers,
    sha256,
    unpack,
)

TEST_LIMIT_SECONDS = 300


def main() -> int:
    """Install the bundle that the command line names."""
    parser = argparse.ArgumentParser(description="Install a bundle of a model.")
    parser.add_argument("bundle", help="path or URL of the bundle")
    parser.add_argument("--to", type=Path, required=True, help="folder of the versions")
    parser.add_argument("--public-key", type=Path, help="PEM file; the bundle must be signed by it")
    parser.add_argument("--test", help="command in place of run.py, whose status 0 is a success")
    parser.add_argument("--allow-older", action="store_true", help="go back to an earlier version")
    options = parser.parse_args()
    work = options.to / ".new"
    try:
        options.to.mkdir(parents=True, exist_ok=True)
        with open(options.to / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(work, ignore_errors=True)  # What a killed installation left.
            try:
                print(install(options, work))
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except (BundleError, OSError, ValueError) as error:
        print(f"error: {error} The version that was installed stays.", file=sys.stderr)
        return 1
    return 0


def install(options: argparse.Namespace, work: Path) -> str:
    """Install a bundle; return a sentence that says what was done.

    Args:
        options: those of the command line.
        work: folder for what is not whole, on the same disk as the versions.
    """
    folder, current = work / "model", options.to / "current"
    folder.mkdir(parents=True)
    bundle = Path(options.bundle)
    if "://" in options.bundle:
        bundle = work / "bundle.tar"
        with (
            urllib.request.urlopen(options.bundle, timeout=60) as source,
            bundle.open("wb") as file,
        ):
            shutil.copyfileobj(source, file)
    manifest = unpack(bundle, folder)
    if options.public_key:
        check_signature(folder, options.public_key)
    else:
        print("The signature was not checked: --public-key names the key.")
    version = manifest["version"]
    name = f"{version}-{sha256(folder / MANIFEST_FILE)[:12]}"
    installed = Path(os.readlink(current)).name if current.is_symlink() else ""
    if installed == name:
        return f"Version {version} is installed already."
    if current.is_dir() and not options.allow_older:
        before = json.loads((current / MANIFEST_FILE).read_bytes())["version"]
        if numbers(version) <= numbers(before):
            raise BundleError(f"Version {version} is not behind {before}: give --allow-older.")
    test(folder, manifest["test"], options.test, work)
    versions = options.to / "versions"
    versions.mkdir(exist_ok=True)
    shutil.rmtree(versions / name, ignore_errors=True)
    os.rename(folder, versions / name)
    os.sync()  # The link must not be on the disk before the files.
    os.symlink(Path("versions", name), work / "current")
    os.replace(work / "current", current)
    os.sync()
    for each in versions.iterdir():
        if each.name not in (name, installed):
            shutil.rmtree(each, ignore_errors=True)
    return f"Version {version} of {manifest['name']} runs: {current}"


def test(folder: Path, expected: dict | None, command: str | None, work: Path) -> None:
    """Run a command in the folder of a version, or `run.py` on the images in it.

    Raises BundleError if it fails, or the logits differ by more than `nas verify` allows.
    """
    if command is not None:
        run(shlex.split(command), folder)
        return
    if expected is None:
        raise BundleError("This model has no run.py: give --test COMMAND, which runs the model.")
    content = (folder / "verification.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8:start])

    def values(name: str) -> bytes:
        first, last = tensors[name]["data_offsets"]
        return content[start + first : start + last]

    count, classes = tensors["logits"]["shape"]
    stored = [values(f"file_{at}") for at in range(len(json.loads(values("file_kinds"))))]
    stored = [each for each in stored if each]
    _, height, width, channels = tensors["pixels"]["shape"]
    head, size = b"P%d %d %d 255\n" % (5 + channels // 3, width, height), height * width * channels
    pixels = values("pixels")
    images = [head + pixels[at * size :][:size] for at in range(count - len(stored))] + stored
    for at, image in enumerate(images):
        (work / f"image{at}").write_bytes(image)
    names = [f"image{at}" for at in range(count)]
    printed = run([sys.executable, str(folder.absolute() / "run.py"), "--json", *names], work)
    try:
        logits = [each.get("logits", []) for each in json.loads(printed)]
    except ValueError:
        raise BundleError(f"run.py printed no JSON: {printed[:100]!r}.") from None
    flat = struct.unpack(f"<{count * classes}f", values(expected["logits"]))
    allowed = expected["tolerance"] * statistics.pstdev(flat)
    right = 0
    for at, own in enumerate(logits):
        pairs = list(zip(own, flat[at * classes :][:classes], strict=False))
        right += len(own) == classes and all(abs(a - b) <= allowed for a, b in pairs)
    if right < int(expected["share"] * count):
        raise BundleError(f"run.py is wrong here: {right} of {count} images are as they should be.")


def run(command: list[str], folder: Path) -> bytes:
    """Return what a command prints. Raises BundleError if it fails or takes too long."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=TEST_LIMIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BundleError(f"The test did not run: {error}.") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise BundleError(f"The test ended with status {done.returncode}, and wrote: {lines[-1]}.")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
