"""A whole job: its run folder, its repetition, its plan and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nas import job as jobs
from nas.deploy.retrain import Retraining
from nas.errors import JobFileError, RunFolderError
from nas.job import finish, load_job
from nas.job.folder import claim
from nas.job.plan import JobPlan
from nas.latency.rounds import fastest_us
from nas.opened_run import open_run
from nas.report import page
from nas.run import candidates
from nas.run.front import front
from nas.run.objectives import run_objectives
from nas.run.record import read_run
from nas.run.settings import SearchSettings
from nas.supernet.evaluation import evaluate
from tests.job.runs import edit
from tests.mini_job import write_job

FAMILIES = {"mobile", "shuffle", "squeeze"}


@pytest.fixture
def finished(finished_job) -> Path:
    return finished_job / "results" / "mini"


def test_run_folder_has_the_files_that_the_results_readme_lists(finished):
    listed = (Path(__file__).parents[2] / "results" / "README.md").read_text()
    for name in ("report.html", "front.csv", "front.json", "trials.csv", "run.json", "job.toml"):
        assert (finished / name).is_file()
        assert f"`{name}`" in listed
    assert f"`{', '.join(candidates.read(finished / 'trials.csv').columns)}`" in listed
    assert (finished / "measurements.jsonl").is_file()
    assert {p.name for p in (finished / "supernets").iterdir()} == FAMILIES
    assert {p.stem for p in (finished / "spaces").iterdir()} == FAMILIES


def test_every_family_has_members_measured_as_logged(finished):
    rows = candidates.read(finished / "trials.csv")
    assert (rows["state"] == "complete").sum() == 30
    assert rows["digest"].is_unique
    measured = rows.dropna(subset=["measured_us"])
    assert len(measured) == 10
    assert set(measured["space"]) == FAMILIES
    assert (measured["measured_us"] > 0).all()
    assert rows["validation_accuracy"].between(0, 1).all()
    assert measured["holdout_accuracy"].between(0, 1).all()
    logged = [json.loads(x) for x in (finished / "measurements.jsonl").read_text().splitlines()]
    assert all(min(r["reading_us"], r["first_us"], r["full_us"]) > 0 for r in logged)
    assert (measured["measured_low_us"] <= measured["measured_us"]).all()
    assert (measured["measured_us"] <= measured["measured_high_us"]).all()
    assert not measured["disturbed"].any()
    for digest, row in measured.set_index("digest").iterrows():
        own = [r for r in logged if r["digest"] == digest]
        assert len(own) >= 2
        medians = [np.median(r["samples_us"]) for r in own]
        expected = fastest_us(medians)
        assert expected == pytest.approx(row["measured_us"], rel=1e-3)


def test_front_is_the_pareto_front_of_measured_candidates(finished):
    rows = candidates.read(finished / "trials.csv").dropna(subset=["measured_us"])
    front = pd.read_csv(finished / "front.csv")
    points = list(zip(rows["measured_us"], rows["corrected_accuracy"], strict=True))
    best = {p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)}
    assert set(zip(front["measured_us"], front["corrected_accuracy"], strict=True)) == best
    document = json.loads((finished / "front.json").read_text())
    assert [m["id"] for m in document["front"]] == front["id"].astype(str).tolist()


def test_run_record_names_stages_versions_data_and_device(finished):
    run = read_run(finished)
    stages = {"prepare", "latency table", "search", "measure the front"}
    assert set(run.stages) == stages | {f"supernet {name}" for name in FAMILIES}
    assert all(record.seconds > 0 for record in run.stages.values())
    assert run.versions["apache-tvm"]
    assert run.data.counts["test"] > 0
    assert run.device.must_match["processor"]


def test_report_is_one_file_that_names_every_front_member(finished):
    text = (finished / "report.html").read_text()
    assert 'src="http' not in text
    assert 'href="http' not in text
    for member in json.loads((finished / "front.json").read_text())["front"]:
        assert f"<code>{member['id']}</code>" in text
    for family in FAMILIES:
        assert family in text
        assert f"{family}, smallest" in text, "the curve of its training"


def test_repeated_job_changes_nothing(copy_of_finished_job, monkeypatch):
    monkeypatch.chdir(copy_of_finished_job)
    finished = Path("results/mini")
    before = {name: (finished / name).read_text() for name in ("trials.csv", "front.csv")}
    log = (finished / "measurements.jsonl").read_bytes()
    images = read_run(finished).data
    # What takes minutes for a large dataset is not done again.
    monkeypatch.delattr("nas.job.stages.check_data")
    monkeypatch.delattr("nas.job.trials_file.evaluate")
    reports, build = [], page.build
    monkeypatch.setattr(page, "build", lambda run: reports.append(run) or build(run))
    jobs.run_job(load_job(Path("job.toml")), finished)
    assert len(reports) == 1
    assert read_run(finished).data == images
    assert {name: (finished / name).read_text() for name in before} == before
    assert (finished / "measurements.jsonl").read_bytes() == log


def test_teacher_is_the_most_accurate_of_the_largest_networks(finished):
    run = open_run(finished)
    name, _ = Retraining(run, epochs=1).teacher
    accuracies = {
        space: evaluate(supernet, [supernet.space.largest], run.data)[0]
        for space in run.record.supernets
        for supernet in [run.supernet(space)]
    }
    assert len(accuracies) == 3
    assert accuracies[name] == max(accuracies.values())


def test_folder_with_other_files_is_refused(job_folder, job):
    (job_folder / "thesis").mkdir()
    (job_folder / "thesis" / "chapter1.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="holds other files and no job"):
        jobs.run_job(job, job_folder / "thesis")
    assert [path.name for path in (job_folder / "thesis").iterdir()] == ["chapter1.txt"]


def test_second_job_in_one_folder_is_refused(job_folder, job):
    with claim(job_folder / "out", job), pytest.raises(RunFolderError, match="Another process"):
        jobs.run_job(job, job_folder / "out")


def test_changed_space_is_refused(job_folder_with_table, job):
    out = job_folder_with_table / "out"
    with claim(out, job) as run:
        run.record.spaces = {"mobile": "another"}
        run.save()
        (out / "supernets" / "mobile").mkdir(parents=True)
        (out / "supernets" / "mobile" / "training.jsonl").touch()
    with pytest.raises(RunFolderError, match=r"A space changed: use another folder"):
        jobs.run_job(job, job_folder_with_table / "out")


@pytest.mark.parametrize(
    ("command", "per_class", "lacking"),
    [
        ("run", [3] * 10, r"10 of 10 classes .* 'c0' has 3, .* and 5 more"),
        ("train", [8, 1], "1 of 2 .* 'c1' has 1"),
    ],
)
def test_classes_of_too_few_images_are_refused_before_any_work(
    job_folder, invoke, command, per_class, lacking
):
    for label, count in enumerate(per_class):
        (job_folder / "photos" / f"c{label}").mkdir(parents=True)
        for number in range(count):
            image = Image.new("L", (8, 8), 20 * label + number)
            image.save(job_folder / "photos" / f"c{label}" / f"{number}.png")
    path = job_folder / "job.toml"
    path.write_text(path.read_text().replace('"digits"', '"photos"'))
    commands = {
        "run": ("run", path),
        "train": ("supernet", "train", "--space", "squeezenet_tiny", "--data", "photos"),
    }
    done = invoke(*commands[command])
    assert done.returncode == 2
    assert re.search(lacking, done.stderr)
    needed = (
        "Each class needs at least 5: 2 to train, 1 for the search, 1 for the hold-out, 1 to test."
    )
    assert needed in done.stderr
    assert "Add images of these classes, or remove the classes." in done.stderr


def test_plan_says_what_one_image_is_worth(job_folder, fake_device, invoke):
    done = invoke("run", write_job(job_folder, spaces=["squeeze"]), "--plan")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("one hold-out image is 0.42 points of accuracy") == 1


def test_plan_says_how_many_images_the_crop_cuts_away(job_folder, fake_device, invoke):
    for name in ("ant", "bee"):
        (job_folder / "lines" / name).mkdir(parents=True)
        for index in range(20):
            image = Image.effect_noise((64, 16), 50 + index)
            image.save(job_folder / "lines" / name / f"{index}.png")
    path = job_folder / "job.toml"
    path.write_text(path.read_text().replace('"digits"', '"lines"\nimage_size = 8'))
    done = invoke("run", "job.toml", "--plan")
    assert "40 of 40 images (100%) lose more than 50%" in " ".join(done.stderr.split())


def test_two_spaces_of_one_name_are_refused(job_folder_with_table):
    path = write_job(job_folder_with_table, extra='\n[[space]]\nname = "mobile.py"\n')
    with pytest.raises(JobFileError, match="Two spaces of the job are called mobile"):
        jobs.run_job(load_job(path), job_folder_with_table / "out")


def test_plan_begins_with_what_was_understood_of_the_images(job_folder, invoke, monkeypatch):
    plan = JobPlan(
        kernels=0, uncertain=0, epochs={"mobile": 1}, trials=1, score_images=4, measure=1,
        retrain=0, finalist_epochs=0, references=0, seconds={"prepare": 1.0},
        data="16 images of 2 classes: dark 8, light 8", image_size=8,
        image_changes="nothing changes", timed_by="this machine",
        idle_limits=["the limit macs 9 excludes nothing"],
    )  # fmt: skip
    monkeypatch.setattr(jobs, "plan_job", lambda settings, **_: plan)
    lines = invoke("run", "job.toml", "--plan").stdout.splitlines()
    assert lines[0] == plan.data
    assert lines[-1] == "The limit macs 9 excludes nothing."


def test_plan_writes_no_file(job_folder, fake_device, invoke, monkeypatch):
    cache = job_folder / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    image_folder(job_folder / "photos")
    path = job_folder / "job.toml"
    path.write_text(path.read_text().replace('"digits"', '"photos"\nimage_size = 8'))
    mine = job_folder / "mine.jsonl"
    mine.write_text('{"some": "notes"}\nno newline')

    def states():
        return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in job_folder.rglob("*")}

    before = states()
    done = invoke("run", path, "--plan", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["kernels"] > 0
    assert plan["data"].startswith("16 images of 2 classes: dark 8, light 8; train ")
    assert states() == before
    path.write_text(path.read_text() + '[device]\ntables = "mine.jsonl"\n')
    before = states()
    for arguments in ((), ("--plan",)):
        refused = invoke("run", path, "--out", job_folder / "out", *arguments)
        assert refused.returncode in (1, 2)
        assert "mine.jsonl" in refused.stderr
        assert states().items() >= before.items()
        assert mine.read_text() == '{"some": "notes"}\nno newline'


def image_folder(root, per_class=8):
    """Pictures of two classes."""
    for value, name in enumerate(("dark", "light")):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.new("L", (8, 8), 100 * value + number).save(root / name / f"{number}.png")


PLAIN = run_objectives(SearchSettings(), ())


def test_to_measure_includes_every_family_and_both_ends_of_the_front(finished):
    # Measured latencies may order the ends otherwise; candidates are chosen before any is known.
    rows = candidates.read(finished / "trials.csv").assign(measured_us=np.nan)
    chosen = finish.to_measure(rows, PLAIN, sorted(FAMILIES), 10)
    assert len(chosen) == len(set(chosen)) == 10
    assert set(rows.set_index("digest").loc[chosen]["space"]) == FAMILIES
    members = front(rows, PLAIN)
    assert {members["digest"].iloc[0], members["digest"].iloc[-1]} <= set(chosen)
    assert len(finish.to_measure(rows, PLAIN, sorted(FAMILIES), 1000)) == 30
    assert finish.to_measure(rows, PLAIN, sorted(FAMILIES), 0) == []


def test_to_measure_includes_the_best_in_a_further_objective_and_all_of_its_front(finished):
    rows = candidates.read(finished / "trials.csv").assign(measured_us=np.nan)
    objectives = run_objectives(SearchSettings(also_minimize=["peak_memory_bytes"]), ())
    members = front(rows, objectives).set_index("digest")
    assert len(members) > len(front(rows, PLAIN))
    few = finish.to_measure(rows, objectives, sorted(FAMILIES), 12)
    smallest = members["peak_memory_bytes"].min()
    assert rows.set_index("digest").loc[few, "peak_memory_bytes"].min() == smallest
    of_families = finish.MIN_PER_SPACE * len(FAMILIES)
    chosen = finish.to_measure(rows, objectives, sorted(FAMILIES), len(members) + of_families)
    assert set(members.index) <= set(chosen)


def test_a_moved_run_continues_from_its_own_job_file(copy_of_finished_job, monkeypatch, invoke):
    folder = copy_of_finished_job
    monkeypatch.chdir(folder)
    (folder / "results/mini").rename(folder / "moved")
    (folder / "results").rmdir()
    for space in FAMILIES:  # The run has its own copies.
        (folder / f"{space}.py").unlink()
    before = (folder / "moved/trials.csv").read_text()
    for argument in ("moved/job.toml", "moved"):
        done = invoke("run", argument, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["run"] == "moved"
    assert not (folder / "results").exists()
    assert (folder / "moved/trials.csv").read_text() == before


def test_home_folder_stands_for_a_tilde_in_every_path_of_a_job(
    job_folder, fake_device, monkeypatch, invoke
):
    home = job_folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    path = write_job(job_folder, spaces=("mobile",), extra='\n[device]\ntables = "~/t"\n')
    (job_folder / "mobile.py").rename(home / "mobile.py")
    edit(path, {'"mobile.py"': '"~/mobile.py"', "trials = 30": "trials = 4"})
    done = invoke("run", "job.toml", "--out=~/run")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in home.iterdir()) == ["mobile.py", "run", "t"]
    assert (home / "run/report.html").is_file()
    assert list((home / "t").glob("*.jsonl"))
    assert not Path("~").exists()
    assert invoke("select", "~/run", "--json").returncode == 0
