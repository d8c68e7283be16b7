"""Training of finalists: networks of a run are trained to the end, and tested once.

Each trained network has a folder `models/<id>/` in the run folder, with its weights, its training
log and the record `trained.json`.
"""

from __future__ import annotations

import json
import math
import platform
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nas
from nas import files
from nas.data import ImageDataset, Images
from nas.deploy.answers import find_answers
from nas.deploy.exits import EXIT_FILE, renew_exit_answers
from nas.deploy.folder import ARCHITECTURE_FILE, PREPROCESSING_FILE, ModelFolder, remove
from nas.deploy.int8 import logits_as_chosen
from nas.deploy.model import TrainedModel, preprocessing_of
from nas.deploy.networks import (
    JUDGED_FILE,
    WEIGHTS_FILE,
    load_supernet,
    load_trained,
    require_supernet,
)
from nas.deploy.references import (
    measure_references,
    note_comparisons,
    published_network,
    read_published,
    summary_of,
)
from nas.deploy.refit import REFIT_FOLDER, TrainedParts
from nas.deploy.requests import RetrainRequest
from nas.display.progress import Advance, part_of
from nas.errors import NasError, RequestError, TrainingError, as_nas_error
from nas.files.documents import to_json
from nas.machine.torch_device import resolve_device
from nas.pretrained import PublishedWeights
from nas.run.answers import ANSWERS, ANSWERS_FILE
from nas.run.judged import JudgedImages
from nas.run.models import advantages
from nas.run.progress import JobProgress, SilentProgress
from nas.run.run import Run
from nas.run.trained import (
    MODELS_FOLDER,
    TRAINED,
    TRAINED_FILE,
    RefitRecord,
    SplitAccuracy,
    TrainedRecord,
)
from nas.space import Architecture
from nas.space.exits import trained_graph
from nas.supernet import checkpoint
from nas.supernet.distillation import Teacher
from nas.supernet.engine import CHECKPOINT_FILE, measure_epoch
from nas.supernet.evaluation import (
    Classify,
    accuracy_by_class,
    calibrated_state,
    evaluate,
    evaluate_network,
    predict,
    predict_network,
)
from nas.supernet.pretrained import probed_network, published_state
from nas.supernet.recipe import Recipe
from nas.supernet.standalone import NetworkTrainer, TrainedNetwork, train_network
from nas.supernet.weights import Supernet
from nas.torch_network import Network

_TIMED_SECONDS, _TIMED_STEPS = 0.5, 3
"""Duration and number of the steps that are timed to plan a training, at least."""


@dataclass(eq=False)
class Retraining:
    """What finalists of a run are trained with.

    Attributes:
        run: the run, locked for this process while networks are trained.
        epochs: passes over the training images; by default those of the run's finalists.
        from_scratch: whether all networks start with newly drawn weights.
        published: published weights from which networks start, by the names of their folders.
        probed: published weights by space; the published network has them, with a linear probe, if
            that is better than what is trained.
        are_shipped: whether the networks are shipped, and so refitted if the run's settings say so.
        longest_seconds: time within which a training has to end; None for no limit.
    """

    run: Run
    epochs: float | None = None
    from_scratch: bool = False
    published: Mapping[str, PublishedWeights] = field(default_factory=dict)
    probed: Mapping[str, PublishedWeights] = field(default_factory=dict)
    are_shipped: bool = True
    longest_seconds: float | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe of a training that starts from random weights."""
        recipe = self.run.recipe(self.epochs or _default_epochs(self.run))
        return replace(recipe, longest_seconds=self.longest_seconds)

    @cached_property
    def device(self) -> torch.device:
        """Where networks are trained."""
        return resolve_device(self.recipe.device)

    @cached_property
    def refit_data(self) -> ImageDataset | None:
        """What networks learn in the end, all images but the test images; None without a refit."""
        data, finish = self.run.data, self.run.settings.finish
        is_refitted = self.are_shipped and finish.refits(data.refit_count)
        return data.for_refit() if is_refitted else None

    @cached_property
    def supernets(self) -> dict[str, Supernet]:
        """The supernets that the run has, by space; those that are missing teach nothing."""
        names = [name for name in self.run.record.spaces or {} if self.run.has_supernet(name)]
        return {name: load_supernet(self.run, name).to(self.device) for name in names}

    @cached_property
    def teacher(self) -> tuple[str, Teacher] | None:
        """The most accurate of the supernets' largest networks, and its space; None without any.

        All networks have the same teacher, so that those of different spaces can be compared.
        """
        recorded = self.run.record.supernets
        accuracies = {
            name: recorded[name].largest_accuracy
            if name in recorded
            else evaluate(supernet, [supernet.space.largest], self.run.data)[0]
            for name, supernet in self.supernets.items()
        }
        if not accuracies:
            return None
        best = max(accuracies, key=lambda name: accuracies[name])
        return best, Teacher.of_supernet(self.supernets[best], self.run.data)

    def supernet_of(self, architecture: Architecture) -> Supernet | None:
        """Return the supernet of a network; None if the run has none, or the space has changed."""
        supernet = self.supernets.get(architecture.space.name)
        if supernet is not None and supernet.space.digest != architecture.space.digest:
            return None
        return supernet

    def supernet_accuracy(self, architecture: Architecture, judging: Images) -> float | None:
        """Return what a network's supernet expects of it on some images; None without one."""
        supernet, run = self.supernet_of(architecture), self.run
        if supernet is None:
            return None
        classes = next(predict(supernet, [architecture], run.data, judging))
        return run.record.expected(run.data.score(classes, judging.labels), architecture)

    def start(
        self, name: str, architecture: Architecture
    ) -> tuple[dict[str, Tensor] | None, Recipe]:
        """Return the weights that a network starts with, None for new ones, and how it learns."""
        run, recipe, graph = self.run, self.recipe, trained_graph(architecture)
        supernet, published = self.supernet_of(architecture), self.published.get(name)
        is_fine_tuned = published is not None or architecture.space.name in run.record.pretrained
        if published is not None:
            seed = run.settings.seed
            start = published_state(
                architecture, published, run.data, seed=seed, device=self.device, graph=graph
            )
        elif supernet is not None and not self.from_scratch:
            start = calibrated_state(supernet, graph, run.data)
        else:
            return None, recipe
        if is_fine_tuned:
            recipe = run.settings.training.fine_tuned(recipe, len(run.data.train))
        return start, recipe

    def better_probe(self, architecture: Architecture, trained: Network) -> Network | None:
        """Return the published network with a linear probe if it is better than when trained.

        The search images choose. Parts of a published network are trained in any case: the supernet
        has trained them for long, and a probe on them is seldom as good.
        """
        space, data = architecture.space, self.run.data
        weights = self.probed.get(space.name)
        if weights is None or self.from_scratch:
            return None
        published = space.reference(weights.reference.name)
        if {**architecture.choices, "dtype": ""} != {**published.choices, "dtype": ""}:
            return None
        probe = self.probe(architecture, data)
        return probe if evaluate_network(probe, data) > evaluate_network(trained, data) else None

    def probe(self, architecture: Architecture, data: ImageDataset) -> Network:
        """Return a linear probe on published weights that learned the training images of `data`."""
        weights, seed = self.probed[architecture.space.name], self.run.settings.seed
        return probed_network(architecture, weights, data, seed=seed, device=self.device)


def retrain(
    run: Run, picks: Sequence[str], request: RetrainRequest, progress: JobProgress
) -> list[TrainedRecord]:
    """Train networks of a run to the end, and write their accuracies into its table.

    A network starts with the supernet's weights, and learns from the labels and from the largest
    network of the run's supernets. The test images are read once, at the end: a network that is
    trained already is neither trained nor tested again. An interrupted training continues.
    Published networks are timed as well, if this is the device of the run.

    Args:
        run: the run.
        picks: the beginnings of digests, such as IDs of the front.
        request: the settings of the training, and published networks to train beside the picks.
        progress: receives progress and messages.

    Returns:
        The records of the networks, also of those that were trained before.

    Raises:
        RequestError: a network is unknown, or was trained in another way.
        WeightsError: the file of published weights is damaged, or not of the reference.
        RunFolderError: the folder is in use, or the run has no supernet of a network's space.
        DataError: the images of the run are missing, or others.
        TrainingError: a training diverged. The other networks were trained.
    """
    references = request.references
    if not picks and not references:
        raise RequestError(
            "There is nothing to train.",
            remedy="Give --pick with an ID of the front, or --reference with a network's name.",
        )
    chosen = dict(finalist(run, pick) for pick in picks)
    chosen |= {name: published_network(run, name) for name in references}
    published = {}
    if request.pretrained is not None:
        (name,) = set(references)
        published[name] = read_published(run, name, request.pretrained, request.conventions)
    for name, architecture in chosen.items():
        record = _earlier_record(run, name, architecture)
        if record is not None:
            _require_as_asked(run, record, request, published.get(name))
        elif not request.from_scratch and name not in references:
            require_supernet(run, architecture.space.name)
    setup = Retraining(run, request.epochs, request.from_scratch, published)
    with run.locked("Wait until it ends, and train then."):
        records, errors = train_networks(setup, chosen, progress)
        rivals = {name: chosen[name] for name in references if name not in errors}
        measure_references(run, rivals, progress)
        note_comparisons(run, rivals, progress)
    if errors:
        raise next(iter(errors.values()))
    return records


def _require_as_asked(
    run: Run, record: TrainedRecord, request: RetrainRequest, weights: PublishedWeights | None
) -> None:
    """Raise RequestError if a network was trained in another way than is asked for now.

    Args:
        run: the run.
        record: the record of the network.
        request: what is asked for.
        weights: the published weights from which a training of this network is asked for.
    """
    facts: dict[str, tuple[object, object]] = {}
    if request.epochs is not None:
        facts["epochs"] = record.epochs, request.epochs
    if request.from_scratch:
        facts["start"] = record.start, "scratch"
    if weights is not None:
        facts["start"] = record.start, "published"
        if (own := record.published) is not None:
            facts["sha256 of its weights"] = own.sha256, weights.file.sha256
            facts["conventions of its weights"] = own.conventions, weights.conventions.name
    _require_equal(run, record.id, facts)


def _require_equal(run: Run, name: str, facts: Mapping[str, tuple[object, object]]) -> None:
    """Raise RequestError if a fact of a trained network is not the one that is asked for.

    Args:
        run: the run.
        name: name of the network's folder in `models`.
        facts: what is stored and what is asked for, by the name of the fact.
    """
    for key, (stored, asked) in facts.items():
        if stored != asked:
            raise RequestError(
                f"{run.path / MODELS_FOLDER / name} holds a network with {key} = {stored}, not "
                f"{asked}.",
                remedy="Move the folder away to train again. The test images are then read again, "
                "so do not choose by their accuracy.",
            )


def train_networks(
    setup: Retraining, networks: Mapping[str, Architecture], progress: JobProgress
) -> tuple[list[TrainedRecord], dict[str, NasError]]:
    """Train networks one after the other, and write their accuracies into the run's table.

    One that fails does not keep the others from being trained.

    Args:
        setup: what they are trained with.
        networks: the networks by the names of their folders in `models`.
        progress: receives progress and messages.

    Returns:
        The records of the trained networks, and the errors of the others by name.
    """
    run = setup.run
    errors: dict[str, NasError] = {}
    records = {name: _earlier_record(run, name, each) for name, each in networks.items()}
    missing = [name for name, record in records.items() if record is None]
    progress.begin("training to the end", "step")
    for number, name in enumerate(missing):
        report = part_of(progress.advance, number, len(missing), name)
        try:
            records[name] = record = train_model(setup, name, networks[name], report)
        except OSError:  # A full disk would stop the others, too.
            raise
        except Exception as error:
            errors[name] = as_nas_error(error, TrainingError)
            progress.note(f"{name} was not trained: {errors[name].message}")
        else:
            progress.note(_summary(record, run.images))
    trained = [record for record in records.values() if record is not None]
    for each in trained:
        renew_answers(run, each.id)
    run.write_trials(run.trials)
    replaced = advantages(run.models, is_balanced=run.images.is_balanced)
    for name, (better, reason) in replaced.items():
        if name not in networks and better.record.id not in networks:
            continue  # It was said when these were trained.
        progress.note(f"{name} is off the front after training: {better.record.id} {reason}")
    return trained, errors


def renew_answers(run: Run, name: str) -> None:
    """Write what a trained network answers on the images that judge it, into its `answers.json`.

    Nothing is done if the file is there, unless `[finish] pictures` has changed since. The answers
    of its exit are written into a file of their own.

    Args:
        run: the run.
        name: name of the network's folder in `models`.
    """
    renew_exit_answers(run, name)
    path, pictures = run.path / MODELS_FOLDER / name / ANSWERS_FILE, run.settings.finish.pictures
    if path.is_file() and ANSWERS.read(path).has_pictures == pictures:
        return
    parts = run.images.judging_parts
    logits_of, _ = logits_as_chosen(load_trained(run, name).judged, run.data)
    logits = logits_of(run.data.part(*parts))
    files.replace(path, to_json(find_answers(logits, run.data, parts, pictures=pictures)))


def _default_epochs(run: Run) -> int:
    """Return the passes over the images of a network if none are asked for."""
    if run.record.finalists is not None:
        return run.record.finalists.epochs
    trained = [summary.epochs for summary in run.record.supernets.values()]
    return math.ceil(max(trained, default=0)) or round(Recipe.epochs)


def measure_network_epoch(setup: Retraining, architecture: Architecture) -> float:
    """Return the seconds of an epoch of a network, by the duration of some steps."""
    teacher = setup.teacher[1] if setup.teacher else None
    graph = trained_graph(architecture)
    trainer = NetworkTrainer(graph, setup.run.data, setup.recipe, seed=0, teacher=teacher)
    return measure_epoch(trainer, seconds=_TIMED_SECONDS, fewest=_TIMED_STEPS)


def _summary(record: TrainedRecord, images: JudgedImages) -> str:
    judges = images.judging_parts
    before = (
        ""
        if record.supernet_accuracy is None
        else f"; {images.text(record.supernet_accuracy, *judges)} with the supernet's weights"
    )
    refit = "" if record.refit is None else f"; {record.refit.text(images.judging_name)}"
    probed = "; published weights with a linear probe are better" if record.is_probe else ""
    return (
        f"{record.id}: trained for {record.recipe.text}{probed}; accuracy on the test images "
        f"{images.text(record.test.accuracy, 'test')}, on the {images.judging_name} images "
        f"{images.text(record.holdout.accuracy, *judges)}{before}{refit}; temperature "
        f"{record.calibration.temperature:.3g}, expected calibration error "
        f"{record.calibration.error_before:.1%} before it and {record.calibration.error:.1%} after"
    )


def finalist(run: Run, pick: str) -> tuple[str, Architecture]:
    """Return the name of a network's folder in `models`, and the network.

    The name is the network's ID, or the name of the folder that it was trained in before.

    Args:
        run: the run.
        pick: the beginning of the network's digest.

    Raises:
        RequestError: the run has no such network, or several.
    """
    candidate = run.candidate(pick)
    named = run.trained.get(candidate.digest) or candidate
    return named.id, run.architecture(candidate.digest)


def _earlier_record(run: Run, name: str, architecture: Architecture) -> TrainedRecord | None:
    """Return the record of a network that is trained already; None if it is not.

    Args:
        run: the run.
        name: name of the network's folder in `models`.
        architecture: the network.

    Raises:
        RequestError: the folder holds another network.
    """
    path = run.path / MODELS_FOLDER / name / TRAINED_FILE
    ModelFolder(path.parent).restore()
    if not path.is_file():
        return None
    record = TRAINED.read(path)
    _require_equal(run, name, {"digest": (record.digest, architecture.digest)})
    return record


def train_model(
    setup: Retraining,
    name: str,
    architecture: Architecture,
    progress: Advance | None = None,
) -> TrainedRecord:
    """Train a network to the end, test it once, and write its folder. See `retrain`.

    Args:
        setup: what the run's finalists are trained with.
        name: name of the network's folder in `models`.
        architecture: the network.
        progress: called after every step.
    """
    run, data = setup.run, setup.run.data
    folder, judging = run.path / MODELS_FOLDER / name, data.part(*run.images.judging_parts)
    supernet_accuracy = setup.supernet_accuracy(architecture, judging)
    advance = progress or SilentProgress().advance
    judged, shipped, fields = _train(setup, name, architecture, advance)
    _save_network(folder, architecture, judged, shipped, setup, fields["training"])
    judged_classes, shipped_classes, int8 = _as_chosen(
        run, architecture, judged.network, shipped.network, judging
    )
    record = TrainedRecord.of_architecture(
        architecture,
        schema=4,
        id=name,
        supernet_accuracy=supernet_accuracy,
        **int8,
        holdout=_split_accuracy(judged_classes, data, judging),
        test=_split_accuracy(shipped_classes, data, data.test),
        **fields,
        seed=run.settings.seed,
        data_digest=data.digest,
        versions={
            "python": platform.python_version(),
            "hardware-nas": nas.__version__,
            "torch": torch.__version__,
        },
    )
    if record.refit is None:  # An earlier start may have begun one, before the job was changed.
        remove(folder / JUDGED_FILE)
        remove(folder / REFIT_FOLDER)
    files.replace(folder / TRAINED_FILE, to_json(record))
    for each in (folder, folder / REFIT_FOLDER):
        (each / CHECKPOINT_FILE).unlink(missing_ok=True)
    return record


def _train(
    setup: Retraining, name: str, architecture: Architecture, progress: Advance
) -> tuple[TrainedParts, TrainedParts, dict[str, Any]]:
    """Train a network, and once more on all images but the test images if it is refitted.

    Args:
        setup, name, architecture: see `train_model`.
        progress: called after every step.

    Returns:
        The weights that are judged, those that are shipped, and fields of the record.
    """
    run, data, everything = setup.run, setup.run.data, setup.refit_data
    folder, published = run.path / MODELS_FOLDER / name, setup.published.get(name)
    start, recipe = setup.start(name, architecture)
    teacher_space, teacher = setup.teacher or (None, None)

    def train(images: ImageDataset, path: Path, report: Advance, own: Recipe) -> TrainedNetwork:
        if (longest_s := recipe.longest_seconds) is not None:  # An epoch may have more images.
            own = replace(own, longest_seconds=longest_s * len(images.train) / len(data.train))
        return train_network(
            architecture,
            images,
            path,
            own,
            seed=run.settings.seed,
            start=start,
            teacher=teacher,
            progress=report,
        )

    report = progress if everything is None else part_of(progress, 0, 2, "to be judged")
    trained = train(data, folder, report, recipe)
    recipe = replace(recipe, epochs=trained.epochs)
    judged = TrainedParts.of(trained.network, architecture)
    probe = setup.better_probe(architecture, judged.network)
    if probe is not None:
        judged = TrainedParts(probe)
    calibrations = judged.calibrate(data)
    shipped, refit = judged, None
    if everything is not None:
        begun, images = time.monotonic(), len(everything.train)
        try:
            if probe is None:
                report = part_of(progress, 1, 2, "refit")
                again = train(everything, folder / REFIT_FOLDER, report, recipe)
                shipped = TrainedParts.of(again.network, architecture)
                refit = RefitRecord(
                    images=images, epochs=round(again.epochs), seconds=again.seconds
                )
            else:
                shipped = TrainedParts(setup.probe(architecture, everything))
                refit = RefitRecord(images=images, epochs=0, seconds=time.monotonic() - begun)
            shipped.take_temperatures(calibrations)
        except TrainingError as error:
            warnings.warn(
                f"{name} is shipped with the weights that were judged, without a refit: {error}",
                stacklevel=2,
            )
    fields = {
        "start": "scratch" if start is None else "published" if published else "supernet",
        "published": None if published is None else summary_of(run, published),
        "is_probe": probe is not None,
        "calibration": calibrations[0],
        "refit": refit,
        "epochs": max(1, round(trained.epochs)),
        "training": recipe.identity(from_scratch=start is None),
        "teacher": f"largest of {teacher_space}" if teacher else None,
        "seconds": trained.seconds,
    }
    return judged, shipped, fields


def _save_network(
    folder: Path,
    architecture: Architecture,
    judged: TrainedParts,
    shipped: TrainedParts,
    setup: Retraining,
    training: dict[str, Any],
) -> None:
    """Write the weights, also those of an exit, and what it takes to classify images with them."""
    record = {
        "space": architecture.space.name,
        "settings": architecture.space.settings,
        "space_digest": architecture.space.digest,
        "network": architecture.digest,
        "data_digest": setup.run.data.digest,
        "training": training,
        "seed": setup.run.settings.seed,
    }
    checkpoint.write(folder / WEIGHTS_FILE, shipped.network.tensors(), record)
    if own := shipped.exit_tensors:
        checkpoint.write(folder / EXIT_FILE, own, record)
    if judged is not shipped:
        tensors = {**judged.network.tensors(), **judged.exit_tensors}
        checkpoint.write(folder / JUDGED_FILE, tensors, record)
    preprocessing = preprocessing_of(setup.run.data, architecture.graph.input_shape[1])
    files.replace(folder / PREPROCESSING_FILE, to_json(preprocessing))
    text = json.dumps(architecture.to_json(), indent=1)
    files.replace(folder / ARCHITECTURE_FILE, f"{text}\n")


def _as_chosen(
    run: Run, architecture: Architecture, judged: Network, shipped: Network, judging: Images
) -> tuple[Classify, Classify, dict[str, float]]:
    """Return what classifies images with trained networks in the dtype that they were chosen in.

    If that is int8, fields of the record say what the network loses by it on the `judging` images.

    Args:
        run, architecture: the run and the network.
        judged: the network with the weights that `judging` judges.
        shipped: the network with the weights that are shipped, which may be the same.
        judging: the images that judge trained networks.
    """
    data = run.data
    classify = partial(predict_network, judged, data)
    if architecture.graph.dtype != "int8":
        return classify, partial(predict_network, shipped, data), {}
    fields = {
        "float32_accuracy": data.score(classify(judging), judging.labels),
        "expected_int8_loss": run.record.int8_losses[architecture.space.name].expected,
    }
    preprocessing = preprocessing_of(data, judged.graph.input_shape[1])
    model = TrainedModel(architecture, judged, preprocessing)
    if shipped is not judged:
        model = TrainedModel(architecture, shipped, preprocessing, judged=model)
    of_judged, of_shipped = logits_as_chosen(model, data)
    return (
        lambda images: of_judged(images).argmax(1),
        lambda images: of_shipped(images).argmax(1),
        fields,
    )


def _split_accuracy(classify: Classify, data: ImageDataset, images: Images) -> SplitAccuracy:
    accuracy, by_class = accuracy_by_class(data, classify(images), images.labels)
    return SplitAccuracy(accuracy=accuracy, images=len(images), class_accuracy=by_class)
