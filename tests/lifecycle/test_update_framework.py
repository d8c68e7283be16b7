"""A bundle as a target of The Update Framework: the newest one arrives, no older one does."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadHTTPError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    UnsignedMetadataError,
)
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.ngclient import FetcherInterface, Updater

from nas.lifecycle.bundle import write_bundle
from tests.deploy.example_model import model_with_script
from tests.lifecycle.bundles import contents, rebundled

DAY = timedelta(days=1)


class Repository(FetcherInterface):
    """A repository in a folder, with a key for each role; a client reads it without a network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "targets").mkdir(parents=True)
        self.signers = {role: CryptoSigner.generate_ed25519() for role in TOP_LEVEL_ROLE_NAMES}
        root = Root(expires=datetime.now(UTC) + 365 * DAY, consistent_snapshot=False)
        for role, signer in self.signers.items():
            root.add_key(signer.public_key, role)
        self.write("root", root)

    def write(self, role, signed, signer=None):
        content = Metadata(signed)
        content.sign(signer or self.signers[role])
        content.to_file(str(self.folder / f"{role}.json"))

    def publish(self, bundle, version, *, targets_version=None, lasts=DAY):
        """Publish a bundle as `model.tar`: targets, snapshot and timestamp, in this order."""
        target = TargetFile.from_file("model.tar", str(bundle))
        (self.folder / "targets" / "model.tar").write_bytes(bundle.read_bytes())
        now = datetime.now(UTC)
        own = targets_version or version
        self.write("targets", Targets(own, expires=now + 30 * DAY, targets={"model.tar": target}))
        meta = {"targets.json": MetaFile(own)}
        self.write("snapshot", Snapshot(version, expires=now + 7 * DAY, meta=meta))
        self.write(
            "timestamp", Timestamp(version, expires=now + lasts, snapshot_meta=MetaFile(version))
        )

    def _fetch(self, url):
        path = self.folder / url.removeprefix("http://models.example/")
        if not path.is_file():
            raise DownloadHTTPError(f"{url} is missing", 404)
        yield path.read_bytes()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Return bundles of the versions 1.0 and 1.1."""
    folder = tmp_path_factory.mktemp("bundles")
    write_bundle(model_with_script(folder / "jc80").path, folder / "1.0.tar")
    return folder / "1.0.tar", rebundled(folder / "1.0.tar", folder / "1.1.tar", {}, "1.1")


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repository")


@pytest.fixture
def update(repository, tmp_path):
    """Return a function that downloads the bundle as a device that started with this root."""
    root = (repository.folder / "root.json").read_bytes()

    def run():
        for name in ("metadata", "downloads"):
            (tmp_path / name).mkdir(exist_ok=True)
        updater = Updater(
            str(tmp_path / "metadata"),
            "http://models.example/",
            str(tmp_path / "downloads"),
            "http://models.example/targets/",
            fetcher=repository,
            bootstrap=root,
        )
        updater.refresh()
        return Path(updater.download_target(updater.get_targetinfo("model.tar")))

    return run


def test_device_installs_the_newest_bundle(repository, update, bundles, tmp_path):
    (tmp_path / "install.py").write_bytes(contents(bundles[0])["install.py"])
    for version, bundle in enumerate(bundles, start=1):
        repository.publish(bundle, version)
        path = update()
        assert path.read_bytes() == bundle.read_bytes()
        command = [sys.executable, tmp_path / "install.py", path, "--to", tmp_path / "to"]
        subprocess.run([*command, "--test", "true"], check=True, capture_output=True)
        installed = tmp_path / "to" / "current" / "manifest.json"
        assert installed.read_bytes() == contents(bundle)["manifest.json"]


def test_an_expired_timestamp_is_refused(repository, update, bundles):
    repository.publish(bundles[0], 1, lasts=-DAY)
    with pytest.raises(ExpiredMetadataError, match=r"timestamp\.json"):
        update()


@pytest.mark.parametrize(
    "metadata",
    [
        {"version": 1},  # Everything as it was: older timestamp, snapshot and targets.
        {"version": 3, "targets_version": 1},  # A new snapshot with the targets of before.
    ],
)
def test_going_back_is_refused(repository, update, bundles, metadata):
    repository.publish(bundles[1], 2)
    path = update()
    repository.publish(bundles[0], **metadata)
    with pytest.raises(BadVersionNumberError):
        update()
    assert path.read_bytes() == bundles[1].read_bytes()


def test_other_files_and_other_keys_are_refused(repository, update, bundles):
    repository.publish(bundles[0], 1)
    target = repository.folder / "targets" / "model.tar"
    content = target.read_bytes()
    target.write_bytes(content[:-1] + b"1")
    with pytest.raises(LengthOrHashMismatchError):
        update()
    target.write_bytes(content)
    repository.signers["timestamp"] = CryptoSigner.generate_ed25519()
    repository.publish(bundles[1], 2)
    with pytest.raises(UnsignedMetadataError):
        update()
