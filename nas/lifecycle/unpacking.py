"""Checks and unpacks a bundle of a model; `install.py` in the bundle has a copy of this text.

It imports the standard library only, and `model_signing` where a signature is checked.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "model.sig"

VERSION_PATTERN = r"\d{1,6}(\.\d{1,6}){1,2}"
"""Pattern of a version of a model."""

MAX_REASON_CHARACTERS = 300
"""Longest reason in a message: some of `model_signing` list every file."""

_DAMAGES = (tarfile.TarError, ValueError, FileExistsError, NotADirectoryError, IsADirectoryError)
"""What a damaged tar file raises: also for an impossible size, and for a file that is a folder."""


class BundleError(Exception):
    """A bundle is damaged, or is not what it should be; the text says how, a sentence."""


class WrongKeyError(BundleError):
    """A file is no public key that signatures can be checked with."""


def unpack(bundle: Path, folder: Path) -> dict[str, Any]:
    """Write the files of a bundle to an empty folder, and check them.

    Args:
        bundle: the tar file.
        folder: the folder.

    Returns:
        The manifest, see `check_files`.

    Raises:
        BundleError: the file is no bundle, an entry is no plain file inside of the folder, or the
            files are not those of the manifest.
    """
    names = set()
    try:
        # Without decompression and sparse files, a bundle never writes more than its own size.
        with tarfile.open(bundle, "r:") as tar:
            for entry in tar:
                if not entry.isreg() or entry.issparse() or not is_inside(entry.name):
                    raise BundleError(f"{entry.name!r} is no plain file inside of the bundle.")
                if entry.name in names:
                    raise BundleError(f"The bundle has {entry.name} twice.")
                names.add(entry.name)
                path = folder / entry.name
                path.parent.mkdir(parents=True, exist_ok=True)
                source = tar.extractfile(entry)
                assert source is not None, "only links and folders have no content"
                with source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)
    except _DAMAGES as error:
        raise BundleError(f"This is no bundle, or a damaged one: {error}.") from None
    return check_files(folder)


def check_files(folder: Path) -> dict[str, Any]:
    """Check that a folder has the files of its manifest, as they were, and no others.

    Returns:
        The manifest: `name`, `version`, `formats`, and in `files` the SHA-256 digest of each file
        but the manifest and the signature.

    Raises:
        BundleError: a file is missing, changed or none of the bundle, or the manifest is damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise BundleError(f"This is no bundle: there is no {MANIFEST_FILE} in it.")
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        if manifest["schema"] != 2:
            raise BundleError(f"{MANIFEST_FILE} has schema {manifest['schema']!r}, and 2 is read.")
        expected = {str(name): str(value) for name, value in manifest["files"].items()}
        is_named = re.fullmatch(r"\w[\w.-]*", manifest["name"])
        if not is_named or not re.fullmatch(VERSION_PATTERN, manifest["version"]):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BundleError(f"{MANIFEST_FILE} is not that of a bundle.") from None
    present = {
        each.relative_to(folder).as_posix()
        for each in folder.rglob("*")
        if each.is_symlink() or not each.is_dir()
    }
    for name in sorted(expected.keys() | present - {MANIFEST_FILE, SIGNATURE_FILE}):
        if name not in expected:
            raise BundleError(f"{name} is no file of the bundle.")
        if name not in present:
            raise BundleError(f"{name!r} is missing.")
        if sha256(folder / name) != expected[name]:
            raise BundleError(f"{name} is not as it was bundled.")
    return manifest


def check_signature(folder: Path, public_key: Path) -> None:
    """Check the signature of an unpacked bundle, without a network.

    Args:
        folder: the folder of the bundle.
        public_key: file of the public key, in PEM.

    Raises:
        WrongKeyError: the file is no public key.
        BundleError: there is no signature, it is of another key or for other files, or the package
            `model-signing` is not installed.
    """
    if not (folder / SIGNATURE_FILE).is_file():
        raise BundleError(f"The bundle is not signed: there is no {SIGNATURE_FILE} in it.")
    try:
        from model_signing import verifying
    except ImportError as error:
        raise BundleError(
            "The signature cannot be checked, because a package is not installed: "
            f"pip install model-signing pyopenssl ({error})."
        ) from None
    # Wrong keys and signatures raise errors of several libraries.
    try:
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        reason = f"is no public key on an elliptic curve in PEM: {key_problem(error)}"
        raise WrongKeyError(f"{public_key} {reason}.") from None
    try:
        verifier.verify(folder, folder / SIGNATURE_FILE)
    except Exception as error:
        reason = (str(error) or type(error).__name__)[:MAX_REASON_CHARACTERS].rstrip(".")
        raise BundleError(f"The owner of {public_key} did not sign the bundle: {reason}.") from None


def key_problem(error: Exception) -> str:
    """Return why a key cannot be used, a clause, from what `model_signing` raised for it."""
    if isinstance(error, AttributeError):  # It reads the curve of any key, also of RSA.
        kind = type(error.obj).__name__.removesuffix("PublicKey").removesuffix("PrivateKey")
        return f"it is a key of the kind {kind}, on no elliptic curve"
    return (str(error) or type(error).__name__)[:MAX_REASON_CHARACTERS].rstrip(".?")


def numbers(version: str) -> list[int]:
    """Return the numbers of a version, which are compared from the first on."""
    return [int(each) for each in version.split(".")]


def is_inside(name: str) -> bool:
    """Return whether a path with slashes stays inside of its folder on every system."""
    parts = name.split("/")
    return name.isprintable() and not {"", ".", ".."} & {*parts} and not {":", "\\"} & {*name}


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file in hexadecimal digits."""
    result = hashlib.sha256()
    with path.open("rb") as file:
        while content := file.read(1 << 20):
            result.update(content)
    return result.hexdigest()
