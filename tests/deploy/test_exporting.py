"""The export of trained networks: the stage of a job, and the command on a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

import nas
from nas.data import load_dataset
from nas.deploy import benchmark, exporting, retrain
from nas.deploy.folder import ModelFolder
from nas.deploy.formats import ModelFormat
from nas.deploy.model import normalised
from nas.deploy.networks import load_trained
from nas.deploy.requests import ExportRequest
from nas.deploy.sustained import measure_sustained
from nas.deploy.verify import load_data
from nas.errors import (
    DataError,
    DeviceError,
    ExportError,
    NasError,
    RequestError,
    TrainingError,
)
from nas.job import finalists
from nas.job.folder import claim
from nas.job.inputs import load_images
from nas.job.running import plan_job, run_job
from nas.job.settings import load_job, with_options
from nas.job.stages import note_few_images
from nas.opened_run import open_run
from nas.quantisation.network import native_weight_bits
from nas.report import page
from nas.run.progress import SilentProgress
from nas.run.record import read_run
from nas.run.settings import DataSettings
from nas.runtimes.tvm.kit.address import EXAMPLE as KIT
from tests.commands import document
from tests.deploy.example_run import SETTINGS, change_record, front_ids, shared_run
from tests.job.runs import Notes
from tests.job.test_finalists import ship_finalists_of
from tests.made_once import made_once
from tests.mini_job import write_job


@pytest.fixture(scope="module", autouse=True)
def _few_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "MAX_ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def trained_example(tmp_path_factory) -> Path:
    """Return a run folder with two trained finalists."""
    example = shared_run(tmp_path_factory)

    def make(folder: Path) -> None:
        run = shutil.copytree(example, folder / "run")
        # What the report needs; no device was opened.
        change_record(
            run,
            device={"summary": "a processor", "must_match": {}, "recorded": {}},
            table={
                "file": "a.jsonl", "kernels": 1, "built": 0, "failed": 0, "unstable": 0,
                "disturbed": 0, "dispatch_us": {}, "calibration": None,
            },
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(finalists, "export_networks", lambda *_, **__: {})
            ship_finalists_of(run, Notes())
        page.build(open_run(run))

    return made_once(tmp_path_factory, "trained_example_run", make) / "run"


@pytest.fixture
def scored_run(tmp_path_factory, tmp_path) -> Path:
    """Return a run folder without trained networks."""
    return shutil.copytree(shared_run(tmp_path_factory), tmp_path / "run")


@pytest.fixture
def run(trained_example, tmp_path) -> Path:
    """Return a run folder with two trained finalists."""
    return shutil.copytree(trained_example, tmp_path / "run")


@pytest.fixture
def pick(run) -> str:
    """Return the ID of a trained network of the front."""
    return front_ids(run)[-1]


@pytest.mark.slow
def test_command_exports_and_the_others_check_what_it_exported(run, pick, in_process, invoke):
    models = document(invoke("export", run, "--pick", pick, "--json"))["models"]
    (model,) = models
    assert [file["format"] for file in model["files"]] == ["onnx", "onnx-int8"]
    folder = run / "models" / pick
    assert model["path"] == str(folder)
    assert model["recipe"]["start"] == "supernet"
    assert model["latencies_us"].keys() == {"predicted"}
    assert pick in (run / "report.html").read_text()
    assert "model-int8.onnx" in (run / "report.html").read_text()

    verified = document(invoke("verify", folder, "--json"))
    assert [each["status"] for each in verified["files"]] == ["verified", "verified"]
    assert verified["images"] == 359

    picture = run / "benchmark.svg"
    timed = document(invoke("benchmark", folder, "--threads", 2, "--plot", picture, "--json"))
    assert {each["file"]["latency"]["threads"] for each in timed["files"]} == {2}
    assert "onnx-int8" in picture.read_text()
    for command in ("export", "verify", "benchmark"):
        arguments = [run, "--pick", pick] if command == "export" else [folder]
        done = invoke(command, *arguments)
        assert done.returncode == 0, done.stderr
        assert "onnx-int8" in done.stdout


@pytest.mark.slow
def test_network_that_is_not_trained_is_trained_first(run, in_process, invoke):
    models = {path.name for path in (run / "models").iterdir()}
    rows = nas.open_run(run).trials
    untrained = next(each for each in rows["id"] if each not in models)
    done = invoke("export", run, "--pick", untrained, "--format", "onnx")
    assert done.returncode == 0, done.stderr
    assert (run / "models" / untrained / "trained.json").is_file()
    ModelFolder(run / "models" / untrained).require_unchanged()


def test_int8_option_adds_the_int8_format_of_each_format(scored_run, invoke, monkeypatch):
    given, command = [], ("export", scored_run, "--pick", front_ids(scored_run)[-1])
    monkeypatch.setattr(
        nas.OpenedRun, "export", lambda run, *picks, formats, **options: given.append(formats) or []
    )
    for arguments in (
        ["--format", "onnx,torch", "--int8"],
        ["--int8"],
        ["--format", "onnx-int8", "--format", "torch"],
    ):
        assert invoke(*command, *arguments).returncode == 0
    assert given == [
        ["onnx", "torch", "onnx-int8"],
        None,
        ["onnx-int8", "torch"],
    ]
    refused = invoke(*command, "--format", "torch", "--int8")
    assert refused.returncode == 2
    assert "None of the formats torch has int8" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is nothing to export"),
        (["--pick", "zzzz"], "have an id that starts with 'zzzz'"),
        (["--pick", "PICK", "--format", "onx"], "There is no format 'onx'"),
        (["--pick", "PICK", "--max-accuracy-drop", "-1"], "max_accuracy_drop is -1.0"),
        (["--pick", "PICK", "--weight-bits", "4"], "cannot have 4 bits"),
        (["--pick", "PICK", "--data", "nowhere"], "cannot be loaded"),
        (["--pick", "PICK", "--min-accuracy", "98"], "min_accuracy is 98.0. Give a fraction"),
        (["--pick", "PICK", "--example", "rust"], "no example in 'rust'. Give cpp"),
        (
            ["--pick", "PICK", "--example", "cpp", "--format", "torch"],
            "formats torch has an example",
        ),
        (
            ["--pick", "PICK", "--min-accuracy", "0.98", "--min-confidence", "0.9"],
            "Both the confidence and the accuracy",
        ),
    ],
)
def test_wrong_request_exits_with_2_and_trains_nothing(scored_run, invoke, arguments, message):
    pick = front_ids(scored_run)[-1]
    words = [pick if word == "PICK" else word for word in arguments]
    done = invoke("export", scored_run, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (scored_run / "models").exists()


@pytest.mark.slow
def test_export_chooses_the_threshold_and_a_later_one_changes_it_alone(
    run, pick, in_process, tmp_path
):
    (tmp_path / "others").mkdir()
    rng = np.random.default_rng(0)
    for index in range(40):
        image = Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8))
        image.save(tmp_path / "others" / f"{index}.png")
    share = 0.3  # The network of one epoch is right on fewer of all images.
    opened, folder = open_run(run), ModelFolder(run / "models" / pick)
    opened.export(pick, formats=["onnx"], min_accuracy=share)
    model, data = load_trained(opened, pick).judged, opened.data
    logits = model.logits(normalised(data.holdout, model.preprocessing))
    confidences = softmax(logits.astype(float), axis=1).max(1)
    right = logits.argmax(1) == data.holdout.labels
    threshold = folder.card.threshold
    assert folder.preprocessing.min_confidence == threshold.min_confidence
    answered = confidences >= threshold.min_confidence
    assert threshold.answered == answered.sum()
    assert right.mean() < share <= right[answered].mean()
    for smaller in confidences[~answered]:
        assert right[confidences >= smaller].mean() < share
    assert folder.card.calibration == opened.trained[model.architecture.digest].calibration
    before = (folder.path / "model.onnx").stat()

    record = json.loads((run / "run.json").read_text())
    record["job"]["data"]["unknown"] = str(tmp_path / "others")
    record["job"]["finish"]["min_accuracy"] = share
    record["job"]["card"] = {"contact": "models@example.org"}
    (run / "run.json").write_text(json.dumps(record))
    open_run(run).export(pick, formats=["onnx"])
    folder.require_unchanged()
    card = folder.card
    assert card.statements.contact == "models@example.org"
    assert card.threshold.unknown == 40
    assert card.threshold.min_confidence >= threshold.min_confidence
    assert card.threshold.accuracy >= share
    assert card.confidence[-1].answered == card.threshold.unknown_answered / 40
    assert folder.preprocessing.min_confidence == card.threshold.min_confidence
    assert card.threshold.summary in (folder.path / "card.md").read_text()
    assert card.threshold.summary in (run / "report.html").read_text()
    after = (folder.path / "model.onnx").stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    open_run(run).export(pick, formats=["onnx"], min_confidence=0.5)
    assert folder.preprocessing.min_confidence == 0.5


@pytest.mark.slow
def test_what_an_export_does_not_say_stays_and_a_change_is_said(run, pick, in_process, invoke):
    def export(*options: object) -> str:
        done = invoke("export", run, "--pick", pick, *options)
        assert done.returncode == 0, done.stderr
        return done.stderr

    folder = ModelFolder(run / "models" / pick)
    export(
        *("--format", "onnx", "--min-confidence", 0.9, "--example", "cpp"),
        *("--int8", "--weight-bits", 7, "--max-accuracy-drop", 0.2),
    )
    measure_sustained(folder.path, minutes=0.01, save=True, progress=False)
    # A new int8 file has the network of the others anew.
    (folder.path / "model-int8.onnx").unlink()
    said = export("--format", "onnx-int8")
    assert folder.preprocessing.min_confidence == 0.9
    assert "MIN_CONFIDENCE = 0.9;" in (folder.path / "preprocessing.h").read_text()
    int8 = folder.card.int8
    assert (int8.weight_bits, int8.max_drop) == (7, 0.2)
    assert "int8 weights" not in said
    assert "sustained speed is no part of the card any more" in said
    measure_sustained(folder.path, minutes=0.01, save=True, progress=False)
    sustained = folder.card.sustained
    export("--format", "tflite")
    assert folder.card.sustained == sustained
    assert "## Sustained speed" in (folder.path / "card.md").read_text()
    folder.require_unchanged()
    said = export("--format", "onnx", "--min-confidence", 0)
    assert "every image is answered now; before, answers from a confidence of 0.9 on" in said
    assert folder.preprocessing.min_confidence is None
    assert (
        "The threshold: every image is answered, as was asked."
        in (folder.path / "card.md").read_text()
    )
    job = json.loads((run / "run.json").read_text())["job"]
    change_record(run, job={**job, "finish": {**job["finish"], "min_confidence": 0.7}})
    if native_weight_bits() == 7:  # Sums of weights of 8 bits overflow in ONNX Runtime here.
        refused = invoke("export", run, "--pick", pick, "--format", "onnx-int8", "--weight-bits", 8)
        assert "model-int8.onnx does not compute what it should" in refused.stderr
        return
    said = export("--format", "onnx-int8", "--weight-bits", 8)
    assert folder.preprocessing.min_confidence is None, "what was asked for stays, also none"
    assert "int8 weights have 8 bits, not 7" in said


@pytest.mark.slow
def test_missing_images_a_changed_byte_and_unreadable_folders_are_named(
    run, pick, in_process, invoke
):
    folder = run / "models" / pick
    with pytest.raises(DataError, match="There is no data at moved/photos"):
        open_run(run, "moved/photos").export(pick)
    open_run(run).export(pick, formats=["onnx"])
    path = folder / "model.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for command in ("verify", "benchmark"):
        done = invoke(command, folder)
        assert done.returncode == 1
        assert "model.onnx is changed" in done.stderr
    for wrong in (run / "nowhere", run / "job.toml", run):
        done = invoke("verify", wrong)
        assert done.returncode == 2
        assert "is not an exported model" in done.stderr


def export_finalists(
    folder: Path, progress: Notes, formats: list[str], **changes: object
) -> dict[str, NasError]:
    settings = load_job(folder / "job.toml")
    own = settings.finish.model_copy(update={"export": tuple(formats), **changes})
    names = sorted(path.name for path in (folder / "models").iterdir())
    with claim(folder, settings.model_copy(update={"finish": own}), progress=progress) as claimed:
        errors = finalists.export_finalists(claimed, names)
        claimed.save()
        return errors


@pytest.mark.slow
def test_threshold_of_a_finalist_is_that_of_the_job(run, pick, in_process):
    folder, progress = ModelFolder(run / "models" / pick), Notes()
    for each in folder.path.parent.iterdir():
        if each.name != pick:
            shutil.rmtree(each)
    open_run(run).export(pick, formats=["onnx"], min_confidence=0.9)

    def threshold_of(**asked: float) -> tuple[float | None, float | None]:
        none = {"min_confidence": None, "min_accuracy": None}
        assert not export_finalists(run, progress, ["onnx"], **none | asked)
        own = folder.card.threshold
        return folder.preprocessing.min_confidence, own and own.min_accuracy

    assert threshold_of(min_confidence=0.6) == (0.6, None)
    assert threshold_of(min_accuracy=0.01) == (None, 0.01), "all answers are right often enough"
    assert threshold_of() == (None, None)
    notes = [each for each in progress.notes if "every image is answered now" in each]
    assert len(notes) == 1
    open_run(run).export(pick, formats=["onnx"], min_confidence=0)
    assert threshold_of(min_confidence=0.8) == (0.8, None)


@pytest.mark.slow
def test_job_exports_its_finalists_and_reports_those_that_fail(run, in_process, monkeypatch):
    progress = Notes()
    assert export_finalists(run, progress, ["onnx"]) == {}
    folders = [ModelFolder(path) for path in (run / "models").iterdir()]
    assert len(folders) == 2
    for folder in folders:
        assert [file.format for file in folder.card.files] == ["onnx"]
    monkeypatch.setattr("nas.deploy.formats.torch.Torch.write", lambda *arguments: 1 / 0)
    errors = export_finalists(run, progress, ["onnx", "torch"])
    assert errors.keys() == {folder.path.name for folder in folders}
    assert all("torch: network.safetensors could" in str(each) for each in errors.values())
    recorded = read_run(run).export_errors
    assert recorded.keys() == errors.keys()
    for reasons in recorded.values():
        assert reasons.keys() == {"torch"}
        assert "ZeroDivisionError" in reasons["torch"]
    assert sum("was not exported in all formats" in note for note in progress.notes) == 2


@pytest.mark.slow
def test_model_that_cannot_be_exported_does_not_keep_others_from_it(run, in_process, monkeypatch):
    export_model, first = exporting.export_model, []

    def fail_once(*arguments, **settings):
        if not first:
            first.append(arguments)
            raise MemoryError
        return export_model(*arguments, **settings)

    monkeypatch.setattr(exporting, "export_model", fail_once)
    progress = Notes()
    errors = export_finalists(run, progress, ["onnx"])
    (failed,) = errors
    assert read_run(run).export_errors == {failed: {"all": "MemoryError."}}
    exported = {path.parent.name for path in run.glob("models/*/card.json")}
    assert exported == {path.name for path in (run / "models").iterdir()} - {failed}
    page.build(open_run(run))
    assert "was not exported: MemoryError" in (run / "report.html").read_text()
    assert export_finalists(run, progress, ["onnx"]) == {}
    page.build(open_run(run))
    assert "was not exported" not in (run / "report.html").read_text()


@pytest.mark.slow
def test_command_exports_the_other_picks_and_writes_the_report_when_one_fails(
    run, in_process, invoke, monkeypatch
):
    picks = sorted(path.name for path in (run / "models").iterdir())
    export_model = exporting.export_model

    def fail(model, data, folder, *arguments, **settings):
        if folder.path.name == picks[0]:
            raise ExportError("It is too large.", remedy="Take a smaller one.")
        return export_model(model, data, folder, *arguments, **settings)

    monkeypatch.setattr(exporting, "export_model", fail)
    done = invoke("export", run, "--pick", picks[0], "--pick", picks[1], "--format", "onnx")
    assert done.returncode == 1
    assert f"{picks[0]} was not exported in all formats: It is too large." in done.stderr
    assert "Take a smaller one. All other files were exported." in done.stderr
    assert ModelFolder(run / "models" / picks[1]).card.files[0].format == "onnx"
    assert f"models/{picks[1]}/run.py" in (run / "report.html").read_text()


def write_short_job(folder: Path, **changes: str) -> None:
    """Write the mini job with one space, and two finalists that are exported.

    Args:
        folder: the folder of the job.
        changes: replacement of each text of the job file.
    """
    path = write_job(folder, spaces=["squeeze"])
    text = path.read_text()
    shorter = {
        "trials = 30": "trials = 6",
        "measure = 10": "measure = 3",
        "retrain = 0": "retrain = 2",
        "export = []": 'export = ["onnx-int8", "onnx"]',
    }
    for old, new in (shorter | changes).items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.slow
def test_job_delivers_everything_but_what_fails_and_tries_that_again(
    job_folder, fake_device, in_process, invoke, monkeypatch
):
    write_short_job(job_folder)
    train_model, names = retrain.train_model, []

    def diverge_once(setup, name, *arguments):
        names.append(name)
        if len(names) == 1:
            raise TrainingError("The loss is not finite.", remedy="Lower learning_rate.")
        return train_model(setup, name, *arguments)

    def fail(*arguments, **settings):
        raise RequestError("Rounding failed.", remedy="Export in float32.")

    monkeypatch.setattr(retrain, "train_model", diverge_once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nas.deploy.export.quantise_within", fail)
        done = invoke("run", "job.toml", "--out", "out")
    assert done.returncode == 1, "a request that was right failed"
    assert len(names) == 2, "the front has two members"
    (model,) = Path("out/models").iterdir()
    assert model.name == names[1]
    for text in (
        f"{names[0]} was not trained: The loss is not finite.",
        f"{model.name} was not exported in all formats: onnx-int8: Rounding failed.",
        "Export in float32. Everything else is done, see out/report.html.",
        "[finish] export may name other formats",
    ):
        assert text in done.stderr
    assert [file.format for file in ModelFolder(model).card.files] == ["onnx"]
    assert (model / "run.py").is_file()
    report = Path("out/report.html").read_text()
    assert f"{names[0]} was not trained to the end: The loss is not finite." in report
    assert "was not exported as onnx-int8: Rounding failed." in report
    assert "model.onnx" in report
    weights = (model / "weights.safetensors").stat().st_mtime_ns
    done = invoke("run", "job.toml", "--out", "out")
    assert done.returncode == 0, done.stderr
    assert (model / "weights.safetensors").stat().st_mtime_ns == weights
    report = Path("out/report.html").read_text()
    assert "was not exported" not in report
    assert "was not trained to the end" not in report


@pytest.mark.parametrize("plan", [["--plan"], []])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"export = []": 'export = ["onnx", "tvm"]\n[device]\nruntime = "onnxruntime"'},
            "Format 'tvm' needs a device with runtime tvm, dtype float32",
        ),
        ({"export = []": 'export = ["onnx", "tflite"]'}, "pip install 'hardware-nas[tflite]'"),
    ],
)
def test_format_that_cannot_be_written_is_refused_before_any_work(
    job_folder, invoke, monkeypatch, changes, message, plan
):
    monkeypatch.setattr("nas.deploy.formats.tflite.TfLite.packages", ("a_missing_package",))
    write_short_job(job_folder, **changes)
    done = invoke("run", "job.toml", "--out", "out", *plan)
    assert done.returncode == 2
    assert message in done.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("target", "threads", "formats"),
    [
        ("cpu", 1, ("tvm",)),
        ("ssh://board", 1, ("c",)),
        (KIT, 1, ("c",)),
    ],
)
def test_default_formats_are_those_that_the_device_can_run(target, threads, formats, monkeypatch):
    monkeypatch.setattr("nas.deploy.formats.c.c_compiler", lambda triple: ["cc"])
    settings = with_options(SETTINGS, device={"target": target, "threads": threads})
    assert exporting.default_formats(settings) == (*formats, "onnx", "onnx-int8")


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ({"target": "cuda"}, "Format 'tvm' holds code for processors"),
        ({"target": "cuda", "dtype": "float16"}, "Format 'tvm' holds code for processors"),
        ({"runtime": "profiler"}, "No format is for runtime 'profiler'"),
        ({}, ""),
        ({"target": "cpu?mcpu=znver3"}, ""),
        ({"target": "ssh://board"}, ""),
        ({"target": KIT}, ""),
        *(
            ({"runtime": runtime, "dtype": dtype}, "")
            for runtime in ("onnxruntime", "litert")
            for dtype in ("float32", "int8", ["float32", "int8"])
        ),
        ({"runtime": "litert", "target": "adb:"}, ""),
        ({"runtime": "ethos_u", "target": "ethos-u55-128", "dtype": "int8"}, ""),
    ],
)
def test_target_for_which_no_file_is_shipped_is_named(device, reason, monkeypatch):
    """All runtimes and their targets, on a machine with the packages of all formats."""
    monkeypatch.setattr("nas.deploy.formats.c.c_compiler", lambda triple: ["cc"])
    monkeypatch.setattr(ModelFormat, "require_packages", lambda self: None)
    problem = exporting.shipping_problem(with_options(SETTINGS, device=device))
    assert reason in problem
    assert bool(problem) == bool(reason)
    if reason:
        _, rest = problem.split("Other runtimes run ")
        assert {"onnx", "onnx-int8"} <= set(rest.split(", ")[:-1])
        assert not {"c", "tvm"} & set(rest.split(", "))


def test_missing_compiler_is_why_no_file_is_shipped(monkeypatch):
    monkeypatch.setattr("nas.deploy.formats.tvm._has_compiler", lambda: False)
    assert "needs a C++ compiler" in exporting.shipping_problem(SETTINGS)


@pytest.mark.parametrize("start", [run_job, plan_job, None])
def test_job_and_export_say_that_no_file_is_shipped(start, job, tmp_path_factory, monkeypatch):
    def absent(*arguments, **settings):
        raise DeviceError("There is no GPU.")

    monkeypatch.setattr("nas.latency.open_runtime", absent)
    settings, progress = with_options(job, device={"target": "cuda"}), Notes()
    if start is None:
        run = nas.open_run(shared_run(tmp_path_factory))
        monkeypatch.setattr(type(run), "settings", settings)
        exporting.checked_request(run, ExportRequest(), progress)
    else:
        arguments = [settings] if start is plan_job else [settings, Path("out")]
        with pytest.raises(DeviceError):
            start(*arguments, progress=progress)
    assert "Format 'tvm' holds code for processors" in progress.notes[0]


def test_few_images_for_int8_are_said_when_the_images_are_open(digits, job_folder):
    few = replace(digits, train=digits.train.take(slice(0, 9)))
    for export, is_said in (["onnx-int8"], True), (["onnx"], False):
        write_short_job(job_folder, **{"export = []": f"export = {json.dumps(export)}"})
        progress = Notes()
        note_few_images(load_job(job_folder / "job.toml"), few, progress)
        assert any("calibrated on 9 training images only" in n for n in progress.notes) == is_said
        assert not any("published weights" in note for note in progress.notes), "no photos"


def test_images_are_loaded_again_on_the_background_of_the_job(scored_run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in ("bee", "cow"):
        (tmp_path / "icons" / name).mkdir(parents=True)
        for index in range(10):
            pixels = rng.integers(0, 256, (8, 8, 4), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "icons" / name / f"{index}.png")
    source = str(tmp_path / "icons")
    settings = SETTINGS.model_copy(
        update={"data": DataSettings(source=source, image_size=8, background="black")}
    )
    data = load_images(settings, SilentProgress())
    on_white = load_dataset(source, image_size=8, seed=SETTINGS.seed)
    assert data.digest != on_white.digest
    summary = {"source": source, "digest": data.digest, "classes": ["bee", "cow"]}
    change_record(
        scored_run,
        job=settings.model_dump(mode="json"),
        data={**summary, "class_counts": data.part_class_counts},
    )
    opened = open_run(scored_run)
    assert opened.data.digest == data.digest
    own = exporting.model_data(opened)
    assert (own.background, own.source) == ("black", "icons"), "the card does not name folders"
    assert load_data(own, 8, scored_run / "models" / "jf2a").digest == data.digest
    with pytest.raises(DataError, match="There is no data at icons"):
        load_data(own, 8, tmp_path / "copy")
