"""Jobs whose networks have an exit: `[[space]] exit`."""

from pathlib import Path

import numpy as np
import pytest

from nas import job as jobs
from nas.deploy.exits import EXIT_FILE, load_with_exit, renew_exit_answers
from nas.deploy.networks import load_trained
from nas.errors import NasError
from nas.job import load_job
from nas.opened_run import open_run
from nas.run.answers import EXIT_ANSWERS_FILE
from nas.space.exits import trained_graph, with_exit
from nas.supernet.evaluation import network_logits
from tests.job.runs import OUT, edit
from tests.latency.fake_runtime import use_fake_device
from tests.made_once import made_once
from tests.mini_job import write_job


def write_exit_job(folder: Path, stage: str = "body", extra: str = "") -> Path:
    """Write the mini job for one space with an exit: 6 trials, 2 timed, 2 trained."""
    path = write_job(folder, spaces=("mobile",), extra=f'exit = "{stage}"\n{extra}')
    changes = {"trials = 30": "trials = 6", "measure = 10": "measure = 2"}
    return edit(path, {**changes, "retrain = 0": "retrain = 2"})


@pytest.fixture(scope="module")
def exit_folder(tmp_path_factory) -> Path:
    """Return a folder with a finished job on a fake device, whose networks have an exit."""

    def run(folder: Path) -> None:
        path = write_exit_job(folder)
        with pytest.MonkeyPatch.context() as patch:
            use_fake_device(patch)
            jobs.run_job(load_job(path), OUT)

    return made_once(tmp_path_factory, "exits", run)


@pytest.fixture
def folder(exit_folder, enter_copy, fake_device) -> Path:
    return enter_copy(exit_folder)


@pytest.mark.slow
def test_finalists_have_exits_whose_answers_are_those_of_their_files(folder):
    run = open_run(OUT)
    (space,) = run.spaces.values()
    assert space.exit == "body"
    assert len(run.models) == 2
    holdout = run.data.holdout
    for model in run.models:
        architecture = run.architecture_of(model.record.architecture)
        assert load_trained(run, model.record.id).network.graph == architecture.graph
        judged, shipped = (
            network_logits(load_with_exit(run, model.record.id, judged=own), run.data, holdout)
            for own in (True, False)
        )
        assert (np.hsplit(judged, 2)[0] != np.hsplit(shipped, 2)[0]).all(), "exits are refitted"
        labels = run.data.holdout.labels
        order = np.argsort(labels, kind="stable")
        for answers, logits in zip(
            (model.exit_answers, model.answers), np.hsplit(judged, 2), strict=True
        ):
            assert (answers.is_right == (logits.argmax(1) == labels)[order]).all()
            confidences = 1 / np.exp(logits - logits.max(1, keepdims=True)).sum(1)
            np.testing.assert_allclose(answers.confidence, confidences[order], atol=1e-5)
        path = run.path / model.folder / EXIT_ANSWERS_FILE
        before = path.read_bytes()
        path.unlink()
        renew_exit_answers(run, model.record.id)
        assert path.read_bytes() == before


@pytest.mark.slow
def test_the_table_has_what_predicts_both_parts_and_the_run_continues(folder):
    run = open_run(OUT)
    model = run.models[0]
    parts = with_exit(run.architecture_of(model.record.architecture))
    assert (
        run.table.missing(
            [kernel for graph in parts[1:3] for kernel in run.table.runtime.kernels(graph)]
        )
        == []
    )
    names = open_run(OUT).cascades().judged.names
    assert {f"{each.record.id}@exit" for each in run.models} <= set(names)
    files = {path: path.read_bytes() for path in run.path.glob(f"models/*/{EXIT_FILE}")}
    assert len(files) == 2
    jobs.run_job(load_job(Path("job.toml")), OUT)
    assert all(path.read_bytes() == content for path, content in files.items())
    edit(Path("job.toml"), {'exit = "body"\n': ""})
    with pytest.raises(NasError, match=r"\[\[space\]\] exit was 'body' and is now not set"):
        jobs.run_job(load_job(Path("job.toml")), OUT)


@pytest.mark.slow
def test_a_network_with_an_exit_can_be_pruned(folder):
    model = open_run(OUT).models[0]
    path = Path("pruning.toml")
    text = Path("job.toml").read_text().replace('name = "mini"', 'name = "pruned"')
    path.write_text(f'{text}within = "{OUT}:{model.record.id}"\n')
    result = jobs.search_job(load_job(path), Path("results/pruned"))
    (space,) = open_run("results/pruned").spaces.values()
    assert space.exit == "body"
    assert space.largest.digest == model.record.digest
    assert trained_graph(space.largest).macs > space.largest.macs
    assert result.trials


@pytest.mark.parametrize(
    ("stage", "extra", "words"),
    [
        ("head", "", "exit is 'head'"),
        ("body", '[device]\ndtype = "int8"\nruntime = "onnxruntime"\n', "dtype int8 and batch 1"),
        ("body", '[device]\ndtype = ["float32", "int8"]\nruntime = "onnxruntime"\n', "and int8"),
        ("body", "[device]\nbatch = 2\n", "dtype float32 and batch 2"),
    ],
)
def test_exits_that_cannot_be_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, fake_device, stage, extra, words
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NasError, match=words) as error:
        jobs.run_job(load_job(write_exit_job(tmp_path, stage, extra)), OUT)
    assert error.value.exit_status == 2
    assert error.value.remedy
    assert not OUT.exists()
