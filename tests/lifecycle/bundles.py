"""Bundles of a small model, and keys that sign them."""

import hashlib
import io
import json
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a private and a public key; return their files."""
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    paths = folder / f"{name}.pem", folder / f"{name}.pub"
    for path, content in zip(paths, (private, public), strict=True):
        path.write_bytes(content)
    return paths


def contents(bundle: Path) -> dict[str, bytes]:
    """Return the content of each file in a bundle."""
    with tarfile.open(bundle) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}


def write_tar(path: Path, files: dict[str, bytes], *others: tarfile.TarInfo) -> Path:
    """Write a tar file with some files, and further entries without content."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for entry in others:
            tar.addfile(entry)
    return path


def hostile_entries() -> Iterator[tarfile.TarInfo]:
    """Yield entries that would write outside of the folder, or are no plain files."""
    for name in ("../out", "/tmp/out", "a/../../out", "a//b", "./out", "a\\..\\out", "C:out"):
        yield tarfile.TarInfo(name)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
        entry = tarfile.TarInfo("link")
        entry.type, entry.linkname = kind, "run.py"
        yield entry
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    yield folder


def rebundled(
    bundle: Path,
    path: Path,
    files: dict[str, bytes],
    version: str = "1.0",
    *,
    names: Collection[str] | None = None,
) -> Path:
    """Write a bundle with some other files, and a manifest that agrees with them.

    Args:
        bundle: the bundle.
        path: path of the other one.
        files: the other files.
        version: its version.
        names: names of the files that it has; by default all.
    """
    own = {**contents(bundle), **files}
    manifest = {**json.loads(own.pop("manifest.json")), "version": version}
    own = {name: own[name] for name in own if names is None or name in names}
    manifest["files"] = {name: hashlib.sha256(own[name]).hexdigest() for name in own}
    return write_tar(path, {**own, "manifest.json": json.dumps(manifest).encode()})
