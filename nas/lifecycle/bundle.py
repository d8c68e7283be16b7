"""`write_bundle` and `open_bundle`: an exported model as one file for its devices, and back.

A bundle is a tar file with the files of the model folder, `bom.json`, `install.py` for the device,
and `manifest.json` with the digests of all of these. `model.sig`, in the format of OpenSSF Model
Signing, signs them. Equal models have equal bundles, but for the signature, which is never the
same twice.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nas import files
from nas.deploy.folder import SUMS_FILE, ModelFolder, digest
from nas.deploy.scripts import standalone
from nas.errors import ExportError, RequestError
from nas.lifecycle import unpacking
from nas.lifecycle.bom import BOM_FILE, bill_of_materials
from nas.lifecycle.unpacking import MANIFEST_FILE, SIGNATURE_FILE, BundleError, WrongKeyError
from nas.lifecycle.version import FIRST_VERSION, version_of
from nas.run.model_card import CARD_FILE

INSTALL_FILE = "install.py"

_PACKAGES = ("cyclonedx", "model_signing", "OpenSSL")
"""Packages of the extra `bundle`, by the names that `import` takes."""


def write_bundle(model: Path, out: Path, *, key: Path | None = None) -> dict[str, Any]:
    """Write an exported model as one file.

    Args:
        model: the model folder, as it was exported.
        out: path of the bundle, which ends in `.tar`.
        key: file of a private key on an elliptic curve in PEM, without a password; None for a
            bundle without a signature.

    Returns:
        The manifest, see `nas.lifecycle.unpacking.check_files`.

    Raises:
        RequestError: a package of the extra `bundle` is missing, the key cannot be used, or the
            folder is that of a cascade.
        RunFolderError, CheckpointError: the folder is no exported model, or a file is damaged.
        ExportError: the folder is not as it was exported.
    """
    files.check_output_path(out, "A bundle", (".tar",))
    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise RequestError(
            f"A bundle needs packages that are not installed: {', '.join(missing)}.",
            remedy="pip install 'hardware-nas[bundle]'",
        )
    _require_files(key)
    folder = ModelFolder(model)
    folder.require_unchanged()
    if not (folder.path / CARD_FILE).is_file():
        raise RequestError(
            f"{model} has no {CARD_FILE}: a cascade cannot be bundled.",
            remedy="Name the folder models/<id> of a run.",
        )
    card, digests = folder.card, folder.sums()
    replaced = version_of(folder.path)
    version = FIRST_VERSION if replaced is None else replaced.version
    with tempfile.TemporaryDirectory(prefix="nas-bundle-") as temporary:
        staging = Path(temporary, f"{card.id}-{version}")
        for name in (*digests, SUMS_FILE):
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.path / name, staging / name)
        bom = bill_of_materials(card, version, digests)
        for name, text in ((BOM_FILE, bom), (INSTALL_FILE, _install_script())):
            (staging / name).write_text(text, encoding="utf-8")
        digests |= {name: digest(staging / name) for name in (BOM_FILE, INSTALL_FILE, SUMS_FILE)}
        manifest = {
            "schema": 2,
            "name": card.id,
            "version": version,
            "formats": {file.format: file.file for file in card.files},
            "files": dict(sorted(digests.items())),
        }
        text = json.dumps(manifest, indent=1) + "\n"
        (staging / MANIFEST_FILE).write_text(text, encoding="utf-8")
        with _as_export_errors(model):  # A file may have changed since the check of the folder.
            unpacking.check_files(staging)
        if key is not None:
            _sign(staging, key)
        files.replace(out, _tar_of(staging))
    return manifest


@contextmanager
def open_bundle(path: Path, *, public_key: Path | None = None) -> Iterator[Path]:
    """Check a bundle, and yield it as a model folder, such as `nas.verify` takes.

    Args:
        path: the bundle, or the folder of an unpacked one.
        public_key: file of the public key whose owner must have signed it, in PEM; None does not
            check the signature.

    Yields:
        The folder, which exists within the block; that of an unpacked bundle is `path`.

    Raises:
        RequestError: there is no such bundle or key, the file does not end in `.tar`, the folder is
            no unpacked bundle, or the key is no public key.
        ExportError: the bundle is damaged, or was not signed with the key.
    """
    _require_files(path, public_key)
    if path.is_dir() and not (path / MANIFEST_FILE).is_file():
        raise RequestError(
            f"{path} is no unpacked bundle: there is no {MANIFEST_FILE} in it.",
            remedy="Name a bundle, or leave --public-key out.",
        )
    if path.is_file() and path.suffix != ".tar":
        raise RequestError(
            f"{path} is not an exported model.",
            remedy="Name the folder of a model, or a bundle, which ends in .tar.",
        )
    with tempfile.TemporaryDirectory(prefix="nas-bundle-") as temporary:
        folder = path.resolve() if path.is_dir() else Path(temporary, "bundle")
        with _as_export_errors(path):
            if path.is_dir():
                unpacking.check_files(folder)
            else:
                folder.mkdir()
                unpacking.unpack(path, folder)
            if public_key is not None:
                unpacking.check_signature(folder, public_key)
        yield folder


def _require_files(*paths: Path | None) -> None:
    """Raise RequestError unless there are files or folders at all paths that are not None."""
    for each in paths:
        if each is not None and not each.exists():
            raise RequestError(f"There is no {each}.", remedy="Name a file that exists.")


@contextmanager
def _as_export_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except WrongKeyError as error:
        raise RequestError(
            str(error), remedy="Make it from the private key: openssl ec -in private.pem -pubout"
        ) from None
    except BundleError as error:
        raise ExportError(
            f"{path}: {error}", remedy="Get the bundle from where it was made, or make a new one."
        ) from None


def _install_script() -> str:
    """Return the text of `install.py`."""
    return standalone(Path(__file__).with_name("install_template.py"), unpacking)


def _sign(folder: Path, key: Path) -> None:
    """Write the signature of all files of a folder to it, without a network."""
    from model_signing import hashing, signing

    own = hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)
    try:
        signer = signing.Config().use_elliptic_key_signer(private_key=key)
    # A wrong key raises errors of several libraries.
    except Exception as error:
        raise RequestError(
            f"{key} cannot sign: {unpacking.key_problem(error)}.",
            remedy="Make a key on an elliptic curve, without a password: "
            "openssl ecparam -name prime256v1 -genkey -noout -out private.pem",
        ) from None
    signer.set_hashing_config(own).sign(folder, folder / SIGNATURE_FILE)


def _tar_of(folder: Path) -> bytes:
    """Return the files of a folder as a tar file that depends on their names and contents alone."""
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w") as tar:
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                tar.addfile(entry, content)
    return result.getvalue()
