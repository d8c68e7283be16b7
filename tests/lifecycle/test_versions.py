"""What changes if a model takes the place of another one, and the versions of models."""

import json
import shutil

import numpy as np
import pytest

from nas.deploy.folder import ModelFolder
from nas.errors import ExportError, RequestError
from nas.files.documents import to_json
from nas.lifecycle.comparison import Judged, compare_models
from nas.lifecycle.version import next_version, version_of
from nas.opened_run import open_run
from tests.commands import document
from tests.plans.cases import change, copy_of_example, refit, trained_ids, write_answers


@pytest.fixture
def run(tmp_path):
    return copy_of_example(tmp_path / "run", has_files=True)


@pytest.mark.parametrize("is_balanced", [False, True])
def test_comparison_counts_each_image(run, is_balanced):
    rng = np.random.default_rng(0)
    before, now = rng.random((2, 240)) < [[0.7], [0.8]]
    models = []
    for name, right in zip(trained_ids(run)[:2], (before, now), strict=True):
        write_answers(run, name, right, np.full(240, 0.5))
        if is_balanced:
            change(run / "models" / name / "card.json", data__metric="balanced_accuracy")
        folder = ModelFolder(run / "models" / name)
        answers = next(m.answers for m in open_run(run).models if m.record.id == name)
        models.append(Judged(name, answers, folder.card.data))
    comparison = compare_models(*models)
    assert comparison.images == 240
    assert comparison.negative_flips == sum(a and not b for a, b in zip(before, now, strict=True))
    assert comparison.positive_flips == sum(b and not a for a, b in zip(before, now, strict=True))
    # All classes have 24 images, so that both metrics are equal.
    assert comparison.gain[0] == pytest.approx(now.mean() - before.mean())
    assert comparison.accuracy_before[0] == pytest.approx(before.mean())
    for label, each in enumerate(comparison.classes):
        own = slice(24 * label, 24 * (label + 1))
        assert (each.name, each.images) == (str(label), 24)
        assert (each.right_before, each.right_now) == (before[own].sum(), now[own].sum())
        assert each.negative_flips == (before[own] & ~now[own]).sum()
    share = comparison.negative_flips / 240
    comparison.require_flips(share)
    with pytest.raises(ExportError, match=f"{comparison.negative_flips} of 240 images"):
        comparison.require_flips(share - 1e-6)


def test_command_compares_models_and_refuses_regressions(run, invoke):
    first, *_, last = (run / "models" / name for name in trained_ids(run))
    printed = document(invoke("compare", first, last, "--json"))
    right = [
        next(each.answers.is_right for each in open_run(run).models if each.record.id == path.name)
        for path in (first, last)
    ]
    assert printed["negative_flips"] == int((right[0] & ~right[1]).sum())
    files = {each["format"]: each for each in printed["files"]}
    cards = [json.loads((path / "card.json").read_text()) for path in (first, last)]
    for card, name in zip(cards, ("before", "now"), strict=True):
        for file in card["files"]:
            assert files[file["format"]][f"bytes_{name}"] == file["size_bytes"]
            assert files[file["format"]][f"us_{name}"] == file["latency"]["fastest_us"]
    # The other way round, more than one image of a thousand is lost.
    refused = invoke("compare", last, first, "--max-negative-flips", "0.001")
    assert refused.returncode == 1
    assert "are allowed" in refused.stderr
    assert f"{first.name} is" in refused.stdout
    refused = invoke("compare", last, first, "--max-negative-flips", "2")
    assert (refused.returncode, refused.stdout) == (2, "")


def test_command_says_that_refitted_models_answered_before(run, invoke):
    first, *_, last = trained_ids(run)
    folders = [run / "models" / name for name in (first, last)]
    assert "before their refit" not in invoke("compare", *folders).stdout
    refit(run, last)
    assert "before their refit" in invoke("compare", *folders).stdout


def test_models_of_other_images_or_without_files_are_refused(run, tmp_path, invoke):
    first, *_, last = (run / "models" / name for name in trained_ids(run))
    other = shutil.copytree(last, tmp_path / "other")
    (other / "run.py").unlink()
    refused = invoke("compare", first, other)
    assert refused.returncode == 1
    assert "run.py is missing" in refused.stderr
    refused = invoke("compare", first, run)
    assert refused.returncode == 2
    assert "not an exported model" in refused.stderr
    models = [Judged.of_folder(path) for path in (first, last)]
    changed = models[1]._replace(data=models[1].data.model_copy(update={"judging_digest": "0000"}))
    with pytest.raises(RequestError, match="judged by other images"):
        compare_models(models[0], changed)


def test_export_writes_the_version_after_that_of_the_parent(run, tmp_path, invoke):
    first, second, *_ = trained_ids(run)
    old = shutil.copytree(run / "models" / first, tmp_path / first)
    export = ["export", run, "--pick", second, "--format", "onnx", "--parent"]
    done = invoke(*export, old)
    assert done.returncode == 0, done.stderr
    folder = run / "models" / second
    version = version_of(folder)
    assert (version.version, version.parent, version.parent_version) == ("1.1", first, "1.0")
    assert version.comparison.verdict in done.stdout
    ModelFolder(folder).require_unchanged()
    # A grandchild has both lines of the log.
    done = invoke("export", run, "--pick", first, "--format", "onnx", "--parent", folder)
    assert done.returncode == 0, done.stderr
    log = version_of(run / "models" / first).log
    assert [entry.version for entry in log] == ["1.2", "1.1"]
    assert log[1].changes == version.comparison.verdict
    assert next_version("2.3.9") == "2.3.10"


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--parent", "{own}"], 2, "would replace itself"),
        (["--parent", "{old}", "--model-version", "1.0"], 2, "not later than 1.0"),
        (["--parent", "{old}", "--model-version", "one"], 2, "is no version"),
        (["--parent", "{old}", "--pick", "{other}"], 2, "2 networks cannot replace one"),
        (["--model-version", "1.1"], 2, "Name its folder with --parent"),
        (["--parent", "{old}", "--max-negative-flips", "0"], 1, "0.00% are allowed"),
        (["--parent", "{old}", "--max-negative-flips", "5"], 2, "max_negative_flips is 5"),
    ],
)
def test_wrong_versions_export_nothing(run, tmp_path, invoke, options, status, message):
    first, *_, last = trained_ids(run)
    old = shutil.copytree(run / "models" / last, tmp_path / "old")
    names = {"own": run / "models" / first, "old": old, "other": last}
    before = {path: path.read_bytes() for path in (run / "models").rglob("*") if path.is_file()}
    done = invoke(
        "export", run, "--pick", first, "--format", "onnx", *(o.format(**names) for o in options)
    )
    assert done.returncode == status
    assert message in done.stderr
    after = {path: path.read_bytes() for path in (run / "models").rglob("*") if path.is_file()}
    assert {k: v for k, v in after.items() if k in before} == before


def test_parent_of_other_images_is_refused_before_a_network_is_trained(run, tmp_path, invoke):
    first, *_ = trained_ids(run)
    old = ModelFolder(shutil.copytree(run / "models" / first, tmp_path / "old"))
    data = old.card.data.model_copy(update={"judging_digest": "0000"})
    with old.staging() as staging:
        (staging / "card.json").write_text(to_json(old.card.model_copy(update={"data": data})))
        old.publish(staging)
    untrained = next(each.id for each in open_run(run).members if each.id not in trained_ids(run))
    refused = invoke("export", run, "--pick", untrained, "--parent", old.path)
    assert refused.returncode == 2
    assert f"{first} and {run} were judged by other images" in " ".join(refused.stderr.split())
    assert not (run / "models" / untrained).exists()
