"""Install a bundle on a device: python install.py BUNDLE --to FOLDER [--public-key KEY]

The link FOLDER/current leads to the version that runs. It is switched at once, after the new
version has classified the images in its folder as it should. Whenever this script is stopped, the
link leads to a whole version, and the same command continues.
"""

from __future__ import annotations

import argparse
import fcntl
import filecmp
import os
import shlex
import shutil
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

REPAIRED = ".repaired"
"""What the name of a version ends in that takes the place of a damaged one."""


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
    # Whoever may enter the folder may read its versions, such as the user of a service.
    os.umask(os.umask(0o022) & 0o022)
    try:
        options.to.mkdir(parents=True, exist_ok=True)
        with open(options.to / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                raise BundleError(
                    f"{lock.name} cannot be locked: {error.strerror}. Install to a local disk."
                ) from None
            shutil.rmtree(work, ignore_errors=True)  # What a killed installation left.
            try:
                print(install(options, work))
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except (BundleError, OSError, ValueError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            reason = f"{error.filename2 or error.filename}: {error.strerror}."
        kept = " The version that was installed stays." if (options.to / "current").exists() else ""
        print(f"error: {reason}{kept}", file=sys.stderr)
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
    is_same = installed.removesuffix(REPAIRED) == name
    if is_same and has_files(current, folder):
        return f"Version {version} is installed already."
    if is_same:
        print(f"The files of {current} are not those of the bundle, and are replaced.")
        name += "" if installed.endswith(REPAIRED) else REPAIRED
    elif installed and current.is_dir() and not options.allow_older:
        before = installed.partition("-")[0]
        if numbers(version) <= numbers(before):
            raise BundleError(f"Version {version} is not later than {before}: give --allow-older.")
    test(folder, options.test)
    versions = options.to / "versions"
    versions.mkdir(exist_ok=True)
    shutil.rmtree(versions / name, ignore_errors=True)
    os.rename(folder, versions / name)
    os.sync()  # The link must not be on the disk before the files.
    os.symlink(Path("versions", name), work / "current")
    os.replace(work / "current", current)
    os.sync()
    for each in versions.iterdir():
        # A damaged version is none to go back to: the one before it stays.
        if each.name != name and (each.name == installed) == is_same:
            shutil.rmtree(each, ignore_errors=True)
    return f"Version {version} of {manifest['name']} runs: {current}"


def has_files(installed: Path, folder: Path) -> bool:
    """Return whether the folder of a version has all files of another folder, as they are there.

    Whoever can read one there can read it in the version, too.
    """
    paths = [each.relative_to(folder) for each in (folder, *folder.rglob("*"))]
    files = [str(each) for each in paths if (folder / each).is_file()]
    filecmp.clear_cache()
    if filecmp.cmpfiles(folder, installed, files, shallow=False)[1:] != ([], []):
        return False
    for each in paths:
        reading = 0o555 if (folder / each).is_dir() else 0o444
        if reading & (folder / each).stat().st_mode & ~(installed / each).stat().st_mode:
            return False
    return True


def test(folder: Path, command: str | None) -> None:
    """Run a command in the folder of a version, or its `run.py --check`.

    Raises BundleError if it fails or takes too long.
    """
    if command is None and not (folder / "run.py").is_file():
        raise BundleError("This model has no run.py: give --test COMMAND, which runs the model.")
    own = shlex.split(command) if command else [sys.executable, "run.py", "--check"]
    try:
        done = subprocess.run(own, cwd=folder, capture_output=True, timeout=TEST_LIMIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BundleError(f"The test did not run: {error}.") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise BundleError(f"The test ended with status {done.returncode}, and wrote: {lines[-1]}")


if __name__ == "__main__":
    sys.exit(main())
