"""Bundles: what is in them, their bill of materials, their signature, and what is refused."""

import contextlib
import hashlib
import json
import shutil
import socket
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from nas.errors import ExportError, RequestError
from nas.files.documents import to_json
from nas.lifecycle import bundle as bundles
from nas.lifecycle.bom import bill_of_materials
from nas.lifecycle.bundle import open_bundle, write_bundle
from nas.lifecycle.version import VERSION_FILE, ModelVersion, VersionEntry
from nas.statistics import wilson_interval
from tests.commands import document
from tests.deploy.example_model import onnx_folder
from tests.lifecycle.bundles import contents, hostile_entries, write_keys, write_tar


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return onnx_folder(tmp_path_factory.mktemp("bundle") / "jc80")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Return the private and the public key, and those of somebody else."""
    where = tmp_path_factory.mktemp("keys")
    return (*write_keys(where, "own"), *write_keys(where, "other"))


@pytest.fixture(scope="module")
def signed(folder, keys, tmp_path_factory):
    """Return a signed bundle, which was made without a network."""
    out = tmp_path_factory.mktemp("signed") / "model.tar"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", no_network)
        write_bundle(folder.path, out, key=keys[0])
    return out


def no_network(*_):
    raise AssertionError("a network was used")


def test_bundle_depends_on_the_model_alone(folder, tmp_path):
    for name in ("one.tar", "two.tar"):
        manifest = write_bundle(folder.path, tmp_path / name)
        for path in folder.path.iterdir():
            path.touch()
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    files = contents(tmp_path / "one.tar")
    assert json.loads(files["manifest.json"]) == manifest
    assert (manifest["name"], manifest["version"]) == ("jc80", "1.0")
    assert manifest["formats"] == {"onnx": "model.onnx"}
    own = {*folder.sums(), "SHA256SUMS", "bom.json", "install.py"}
    assert {*files} == {*own, "manifest.json"}
    assert manifest["files"] == {each: hashlib.sha256(files[each]).hexdigest() for each in own}
    # What training left, such as pictures in answers.json, is no part of it.
    assert "answers.json" not in files
    with tarfile.open(tmp_path / "one.tar") as tar:
        entries = tar.getmembers()
    assert [each.name for each in entries] == sorted(files)
    assert {(each.mtime, each.uid, each.gid, each.uname) for each in entries} == {(0, 0, 0, "")}
    # Nothing else is left beside it.
    assert {each.name for each in tmp_path.iterdir()} == {"one.tar", "two.tar"}


def test_bundle_has_the_version_of_the_model(tmp_path):
    copy = onnx_folder(tmp_path / "jc80")
    flips = {"before": "a", "now": "b", "images": 1, "negative_flips": 0, "positive_flips": 0}
    thirds = dict.fromkeys(("accuracy_before", "accuracy_now", "gain"), (0.5, 0.4, 0.6))
    record = ModelVersion(
        version="2.3",
        parent="jf2a",
        parent_version="2.2",
        parent_digest="0123",
        comparison={**flips, **thirds, "is_shown": False, "classes": (), "files": ()},
        log=(VersionEntry(version="2.3", date="2026-01-01", changes="none"),),
    )
    with copy.staging() as staging:
        (staging / VERSION_FILE).write_text(to_json(record))
        copy.publish(staging)
    assert write_bundle(copy.path, tmp_path / "a.tar")["version"] == "2.3"
    bom = json.loads(contents(tmp_path / "a.tar")["bom.json"])
    assert bom["metadata"]["component"]["version"] == "2.3"


@pytest.mark.slow
def test_command_bundles_and_verifies(folder, keys, tmp_path, invoke):
    out = tmp_path / "jc80-1.0.tar"
    made = document(invoke("bundle", folder.path, "--out", out, "--key", keys[0], "--json"))
    assert made["is_signed"]
    assert made["files"] == json.loads(contents(out)["manifest.json"])["files"]
    verified = document(invoke("verify", out, "--public-key", keys[1], "--json"))
    assert [each["status"] for each in verified["files"]] == ["verified"]
    # The same for an unpacked bundle, also behind a link, and with the tool of OpenSSF.
    with tarfile.open(out) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (tmp_path / "current").symlink_to("unpacked")
    for path in (tmp_path / "unpacked", tmp_path / "current"):
        done = invoke("verify", path, "--public-key", keys[1])
        assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "model_signing", "verify", "key", tmp_path / "unpacked"]
    options = ["--signature", tmp_path / "unpacked" / "model.sig", "--public_key", keys[1]]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "unpacked" / "cascade.json").write_text("{}")
    done = invoke("verify", tmp_path / "unpacked", "--public-key", keys[1])
    assert done.returncode == 1
    assert "cascade.json is no file of the bundle" in done.stderr
    done = invoke("verify", out)
    assert "The signature was not checked" in done.stdout + done.stderr


def test_every_changed_byte_is_seen(signed, keys, tmp_path):
    files = contents(signed)
    for name, content in files.items():
        for at in {0, len(content) // 2, len(content) - 1}:
            changed = bytes([content[at] ^ 1])
            other = {**files, name: content[:at] + changed + content[at + 1 :]}
            with (
                pytest.raises(ExportError),
                open_bundle(write_tar(tmp_path / "b.tar", other), public_key=keys[1]),
            ):
                pass
    for name in files:
        other = {each: content for each, content in files.items() if each != name}
        with (
            pytest.raises(ExportError, match="missing|no bundle|is not signed"),
            open_bundle(write_tar(tmp_path / "b.tar", other), public_key=keys[1]),
        ):
            pass
    whole = signed.read_bytes().rstrip(b"\0")  # Blocks of zeros follow the last file.
    for size in range(0, len(whole), 40_000):
        (tmp_path / "b.tar").write_bytes(whole[:size])
        with pytest.raises(ExportError), open_bundle(tmp_path / "b.tar"):
            pass


def test_other_signatures_are_refused(folder, signed, keys, tmp_path, invoke):
    done = invoke("verify", signed, "--public-key", keys[3])
    assert done.returncode == 1
    assert f"The owner of {keys[3]} did not sign the bundle" in done.stderr
    # Somebody else puts another file into the bundle, and corrects all digests.
    files = contents(signed)
    manifest = json.loads(files["manifest.json"])
    files["run.py"] = b"print('mine')\n"
    manifest["files"]["run.py"] = hashlib.sha256(files["run.py"]).hexdigest()
    files["manifest.json"] = json.dumps(manifest).encode()
    forged = write_tar(tmp_path / "forged.tar", files)
    with open_bundle(forged):  # Whole, but not signed.
        pass
    with pytest.raises(ExportError, match="did not sign"), open_bundle(forged, public_key=keys[1]):
        pass
    # A file that the tool of OpenSSF leaves out by default.
    files = {**contents(signed), ".gitignore": b"*"}
    with (
        pytest.raises(ExportError, match=".gitignore is no file of the bundle"),
        open_bundle(write_tar(tmp_path / "forged.tar", files), public_key=keys[1]),
    ):
        pass
    write_bundle(folder.path, tmp_path / "plain.tar")
    done = invoke("verify", tmp_path / "plain.tar", "--public-key", keys[1])
    assert done.returncode == 1
    assert "The bundle is not signed: there is no model.sig in it" in done.stderr
    for key in (keys[0], signed):  # No public keys.
        with (
            pytest.raises(RequestError, match=f"{key} is no public key"),
            open_bundle(signed, public_key=key),
        ):
            pass
    for path, key in ((signed, tmp_path / "none"), (folder.path, keys[1])):
        assert invoke("verify", path, "--public-key", key).returncode == 2


@pytest.mark.parametrize("entry", [*hostile_entries()], ids=lambda each: f"{each.name}-{each.type}")
def test_entries_outside_of_the_folder_are_refused(signed, tmp_path, entry):
    bundle = write_tar(tmp_path / "b.tar", contents(signed), entry)
    (tmp_path / "to").mkdir()
    with pytest.raises(bundles.BundleError, match="is no plain file inside of the bundle"):
        bundles.unpacking.unpack(bundle, tmp_path / "to")
    assert {each.name for each in tmp_path.iterdir()} == {"b.tar", "to"}
    assert not any(each.is_symlink() for each in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"manifest.json": b"{}"}, "is not that of a bundle"),
        ({"manifest.json": b"["}, "is not that of a bundle"),
        ({"manifest.json": b"[" * 100_000}, "is not that of a bundle"),
        ({"manifest.json": b'{"schema": 1}'}, "has schema 1"),
        ({"a": b"", "a/b": b""}, "a damaged one"),
        ({}, "no bundle"),
    ],
)
def test_damaged_bundles_are_refused(tmp_path, files, message):
    with (
        pytest.raises(ExportError, match=message),
        open_bundle(write_tar(tmp_path / "b.tar", files)),
    ):
        pass
    manifest = b'{"schema": 2, "name": "a", "version": "1/../../b", "files": {}}'
    with (
        pytest.raises(ExportError, match="is not that of a bundle"),
        open_bundle(write_tar(tmp_path / "b.tar", {"manifest.json": manifest})),
    ):
        pass


@pytest.mark.slow
def test_random_changes_of_a_small_bundle_are_refused_or_harmless(tmp_path):
    rng = np.random.default_rng(0)
    files = {"run.py": b"x" * 300, "folder/a": b"hello"}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"schema": 2, "name": "a", "version": "1.0", "files": digests}
    files["manifest.json"] = json.dumps(manifest).encode()
    bundle = write_tar(tmp_path / "b.tar", files)
    content = bundle.read_bytes()[: 10 << 9]
    for _ in range(2000):
        changed = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 6)):
            changed[at] = rng.choice([0, 46, 47, 49, 50, 255, rng.integers(256)])
        for start in range(0, len(content), 512):  # Correct the checksums of the headers.
            if changed[start + 257 : start + 262] == b"ustar":
                changed[start + 148 : start + 156] = b" " * 8
                total = sum(changed[start : start + 512])
                changed[start + 148 : start + 156] = b"%06o\0 " % total
        bundle.write_bytes(changed)
        (tmp_path / "to").mkdir()
        with contextlib.suppress(bundles.BundleError):
            bundles.unpacking.unpack(bundle, tmp_path / "to")
            own = contents_of(tmp_path / "to")  # Some changes of the manifest matter to nobody.
            assert {**own, "manifest.json": files["manifest.json"]} == files
        assert {each.name for each in tmp_path.iterdir()} == {"b.tar", "to"}
        shutil.rmtree(tmp_path / "to")


def contents_of(folder):
    """Return the content of each file in a folder, by name."""
    paths = (each for each in folder.rglob("*") if each.is_file())
    return {each.relative_to(folder).as_posix(): each.read_bytes() for each in paths}


def test_entry_twice_is_refused(signed, tmp_path):
    bundle = write_tar(tmp_path / "b.tar", contents(signed), tarfile.TarInfo("run.py"))
    with pytest.raises(ExportError, match=r"has run\.py twice"), open_bundle(bundle):
        pass


@pytest.mark.parametrize("kind", ["RSA", "Ed25519"])
def test_a_key_of_another_kind_is_named(folder, signed, tmp_path, kind):
    if kind == "RSA":
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    else:
        key = ed25519.Ed25519PrivateKey.generate()
    private, public = tmp_path / "own.pem", tmp_path / "own.pub"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(RequestError, match=f"cannot sign: it is a key of the kind {kind}"):
        write_bundle(folder.path, tmp_path / "a.tar", key=private)
    with (
        pytest.raises(RequestError, match=f"in PEM: it is a key of the kind {kind}"),
        open_bundle(signed, public_key=public),
    ):
        pass
    assert not (tmp_path / "a.tar").exists()


def test_wrong_requests_write_nothing(folder, keys, tmp_path, invoke, monkeypatch):
    out = tmp_path / "out.tar"
    assert "ends in .tar" in invoke("bundle", folder.path, "--out", tmp_path / "a.zip").stderr
    for key, reason in (
        (keys[1], "cannot sign"),
        (folder.path / "run.py", "cannot sign"),
        (tmp_path / "none", "There is no"),
    ):
        done = invoke("bundle", folder.path, "--out", out, "--key", key)
        assert done.returncode == 2
        assert reason in done.stderr
    changed = shutil.copytree(folder.path, tmp_path / "changed")
    (changed / "run.py").write_text("print()")
    done = invoke("bundle", changed, "--out", out)
    assert done.returncode == 1
    assert "run.py is changed" in done.stderr
    for name in ("run.py", "card.json"):  # Neither is there in the folder of a cascade.
        (changed / name).unlink()
    sums = (changed / "SHA256SUMS").read_text().splitlines(keepends=True)
    (changed / "SHA256SUMS").write_text(
        "".join(line for line in sums if line.split()[1] not in ("run.py", "card.json"))
    )
    done = invoke("bundle", changed, "--out", out)
    assert done.returncode == 2
    assert "a cascade cannot be bundled" in done.stderr
    done = invoke("bundle", tmp_path, "--out", out)
    assert done.returncode == 2
    find_spec = bundles.find_spec
    monkeypatch.setattr(
        bundles, "find_spec", lambda name: None if name == "cyclonedx" else find_spec(name)
    )
    with pytest.raises(RequestError, match=r"cyclonedx.*hardware-nas\[bundle\]"):
        write_bundle(folder.path, out)
    assert not out.exists()


def test_bill_of_materials_says_what_the_card_says(folder, signed):
    files = contents(signed)
    text = files["bom.json"].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom, card = json.loads(text), json.loads(files["card.json"])
    model = bom["metadata"]["component"]
    assert (model["type"], model["name"]) == ("machine-learning-model", card["id"])
    metrics = {
        (each["type"], each["slice"]): each
        for each in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    }
    own = metrics["accuracy", "test"]
    count = sum(card["data"]["class_counts"]["test"])
    interval = wilson_interval(card["accuracy"]["test"], [count])
    assert float(own["value"]) == pytest.approx(card["accuracy"]["test"], abs=1e-4)
    ends = own["confidenceInterval"]
    assert float(ends["lowerBound"]) == pytest.approx(interval.low, abs=1e-4)
    assert float(ends["upperBound"]) == pytest.approx(interval.high, abs=1e-4)
    assert len([1 for _, part in metrics if part.startswith("test, class ")]) == 10
    assert len([1 for _, part in metrics if "attack: " in part]) == len(card["attacks"])
    latency = metrics["latency in microseconds", f"model.onnx, one image on {card['device']}"]
    assert float(latency["value"]) == pytest.approx(
        card["files"][0]["latency"]["fastest_us"], rel=1e-3
    )
    by_ref = {each["bom-ref"]: each for each in bom["components"]}
    assert len(by_ref) == len(bom["components"])
    assert by_ref["data"]["licenses"] == [{"license": {"name": card["data"]["license"]}}]
    assert by_ref["device"]["name"] == card["device"]
    for name in folder.sums():
        [value] = by_ref[f"file:{name}"]["hashes"]
        assert value["content"] == hashlib.sha256(files[name]).hexdigest()
    versions = {each["name"]: each["version"] for each in bom["components"] if "purl" in each}
    assert versions.pop("hardware-nas") == card["versions"].pop("nas")
    del card["versions"]["python"]
    assert versions == {**card["versions"], **card["files"][0]["versions"]}
    for each in bom["dependencies"]:
        assert {*each["dependsOn"], each["ref"]} <= {*by_ref, "model"}


def test_bill_of_materials_is_checked_by_the_schema(folder):
    card = folder.card
    data = card.data.model_copy(update={"license": "cc-by-4.0"})
    stated = {"intended_use": "letters", "misuse": "cheques", "human_oversight": "a clerk"}
    statements = card.statements.model_copy(update={**stated, "data_origin": "Kassel"})
    other = card.model_copy(update={"data": data, "statements": statements})
    bom = json.loads(bill_of_materials(other, "1.0", {}))
    assert bom["components"][0]["licenses"] == [{"license": {"id": "CC-BY-4.0"}}]
    assert bom["components"][0]["description"].endswith("359 test. Kassel")
    considerations = bom["metadata"]["component"]["modelCard"]["considerations"]
    assert considerations["useCases"] == ["letters"]
    assert considerations["ethicalConsiderations"] == [
        {"name": "cheques", "mitigationStrategy": "a clerk"}
    ]
    with pytest.raises(ExportError, match="not be valid CycloneDX"):
        bill_of_materials(card, "1.0", {"model.onnx": "no digest"})
