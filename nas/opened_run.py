"""`open_run`: a run as people use it, to choose a network, train it to the end and export it.

The files of a run are read by `nas.run`, which knows nothing of what acts on them. What acts on
them is imported when it is called: opening a run brings in no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from nas.errors import ExportError, RequestError, TrainingError
from nas.run.candidates import Candidate
from nas.run.model_card import ExportedFile
from nas.run.progress import JobProgress, shown
from nas.run.run import Run
from nas.run.selection import Limits, Option, selection_rule
from nas.run.trained import TrainedRecord

if TYPE_CHECKING:
    from nas.deploy.folder import ModelFolder
    from nas.plans.cascade import Cascade, CascadePlan
    from nas.plans.cascade_export import CascadeRecord
    from nas.plans.split_run import SplitReport
    from nas.supernet.ranking_records import RankingRecord
    from nas.supernet.weights import Supernet
    from nas.torch_network import Network


def open_run(path: Path | str, data_source: str | None = None) -> OpenedRun:
    """Return the run in a folder.

    Args:
        path: the run folder.
        data_source: where the images of the run are, if they were moved.

    Raises:
        RunFolderError: the folder is no run folder.

    Example:
        >>> run = open_run("results/example")
        >>> run.pick(max_latency_ms=1.0).space in run.record.spaces
        True
    """
    run = OpenedRun(Path(path), data_source)
    _ = run.record
    return run


class OpenedRun(Run):
    """The folder of one run, with what can be done with its networks.

    Args:
        path: the run folder.
        data_source: where the images of the run are, if they were moved.
    """

    def pick(
        self,
        *,
        limits: Mapping[str, float] | None = None,
        int8: bool = False,
        knee: bool = False,
        most_accurate: bool = False,
        **named: float | None,
    ) -> Pick:
        """Return the member of the front to choose of those that meet the limits.

        This is the fastest one that the images do not tell from the most accurate one, see
        `nas.run.selection.Selection.choose`. Trained members are compared by their trained
        accuracy, see `nas.run.selection.expected_accuracies`.

        Args:
            limits: limits of figures of the runtime by their names, as in `[search.limits]`.
            int8: whether to choose among the exported files of the members, in float32 and in int8,
                by their own accuracies and latencies. `Pick.path` is then the file to deploy.
            knee: whether to return the knee point instead, see `nas.run.selection.knee`.
            most_accurate: whether to return the most accurate member instead.
            **named: `max_latency_ms`, `max_macs`, `max_params`, `max_peak_memory_bytes`,
                `max_file_bytes` (estimated for members that were not exported) and
                `min_accuracy`, see `nas.figures`.

        Raises:
            InfeasibleError: no member meets the limits; the message names the nearest. Or there is
                no knee point.
            RunFolderError: the run has no front.
            RequestError: a limit is not known or not above zero, no member was exported in int8, or
                both the knee point and the most accurate member are asked for.
        """
        own = Limits(limits, self.figures.values(), **named)
        rule = selection_rule(knee=knee, most_accurate=most_accurate)
        return Pick.of_run(self, self.selection(own, int8=int8).choose(rule))

    def supernet(self, space: str) -> Supernet:
        """Return the trained supernet of a space. See `nas.deploy.networks.load_supernet`."""
        from nas.deploy.networks import load_supernet

        return load_supernet(self, space)

    def network(self, digest: str) -> Network:
        """Return a network of the run as a `torch.nn.Module` in evaluation mode.

        Its weights are those of `nas retrain`, if it was trained to the end. Otherwise they are
        those of the supernet, with statistics of the batch norms computed on training images.

        Args:
            digest: the beginning of its digest, such as an `id` of `trials`.

        Raises the errors of `nas.deploy.networks.load_network`.
        """
        from nas.deploy.networks import load_network

        return load_network(self, digest)

    def retrain(
        self, *picks: str, progress: JobProgress | bool | None = True, **settings: Any
    ) -> list[TrainedRecord]:
        """Train networks of the run to the end, test each of them once, and renew the report.

        Args:
            picks: the beginnings of digests, such as IDs of the front.
            progress: see `Pick.export`.
            settings: the settings of the training, see `nas.deploy.requests.RetrainRequest`.

        Returns:
            The records of the networks, also of those that were trained before.

        Raises the errors of `nas.deploy.retrain.retrain`.
        """
        from nas.deploy.requests import RetrainRequest
        from nas.deploy.retrain import retrain

        request = RetrainRequest(**settings)
        with self._renewing_report(), shown(progress) as bars:
            return retrain(self, picks, request, bars)

    def export(
        self,
        *picks: str,
        parent: Path | str | None = None,
        version: str | None = None,
        max_negative_flips: float | None = None,
        progress: JobProgress | bool | None = True,
        **settings: Any,
    ) -> list[ModelFolder]:
        """Export networks of the run to files that are checked, and renew the report.

        Networks that are not trained to the end are trained first, which takes a while.

        Args:
            picks: the beginnings of digests, or names of published networks that were trained.
            parent: folder of the model that the one network replaces, see `nas.lifecycle.version`.
            version: version of the network; by default the one after that of the parent.
            max_negative_flips: share of the judging images that may be right with the parent and
                wrong with the network, as a fraction; by default any. With more, nothing is
                exported.
            progress: see `Pick.export`.
            settings: the settings of the export, see `nas.deploy.requests.ExportRequest`.

        Returns:
            The folders of the models, in the order of `picks`.

        Raises the errors of `nas.deploy.exporting.checked_request`, `export` there,
        `nas.deploy.retrain.retrain`, and with a parent those of `nas.lifecycle`.
        """
        from nas.deploy.exporting import checked_request, export
        from nas.deploy.networks import is_trained, trained_record
        from nas.deploy.requests import ExportRequest, RetrainRequest
        from nas.deploy.retrain import renew_answers, retrain
        from nas.lifecycle.version import Replacement

        if not picks:
            raise RequestError(
                "There is nothing to export.", remedy="Give --pick with an ID of the front."
            )
        replacement = None
        if parent is not None:
            replacement = Replacement(Path(parent), version, max_negative_flips, len(picks))
            replacement.check_images(self)
        elif version is not None or max_negative_flips is not None:
            raise RequestError(
                "A version and a limit of negative flips need the model that is replaced.",
                remedy="Name its folder with --parent.",
            )
        request = ExportRequest(**settings)
        with self._renewing_report(), shown(progress) as bars:
            request = checked_request(self, request, bars)
            untrained = [pick for pick in picks if not is_trained(self, pick)]
            if untrained:
                retrain(self, untrained, RetrainRequest(), bars)
            names = [trained_record(self, pick).id for pick in picks]
            for name in names:
                renew_answers(self, name)
            if replacement is not None:
                replacement.check(self, names[0])
            folders = export(self, names, request, bars)
            if replacement is not None:
                replacement.write_version(folders[0])
            return folders

    def cascades(
        self,
        stages: int = 2,
        *,
        server: Path | str | None = None,
        bandwidth_mbps: float = math.nan,
        rtt_ms: float = math.nan,
    ) -> CascadePlan:
        """Return the cascades of the trained networks.

        Args:
            stages: most networks of a cascade, 2 or 3.
            server: latency table of a server on which the last network may run.
            bandwidth_mbps, rtt_ms: the link to it, see `split`.

        Raises the errors of `nas.plans.cascade_members.plan_cascades`.
        """
        from nas.latency import LatencyTable
        from nas.plans.cascade_members import Server, plan_cascades
        from nas.plans.split import Link

        if server is None:
            return plan_cascades(self, stages)
        link = Link(bandwidth_mbps, rtt_ms)
        return plan_cascades(self, stages, Server(LatencyTable.open(server), link))

    def export_cascade(
        self, cascade: Cascade, format_name: str, *, progress: JobProgress | bool | None = True
    ) -> CascadeRecord:
        """Export one of `cascades` to a folder that is verified and timed.

        Args:
            cascade, format_name: see `nas.plans.cascade_export.export_cascade`.
            progress: see `Pick.export`.

        Raises the errors of `nas.plans.cascade_export.export_cascade`.
        """
        from nas.plans.cascade_export import export_cascade

        with self._renewing_report(), shown(progress) as bars:
            return export_cascade(self, cascade, format_name, bars)

    def rank(self, *, progress: JobProgress | bool | None = True, **settings: Any) -> RankingRecord:
        """Compare the supernets with networks that are trained alone.

        Args:
            progress: see `Pick.export`.
            settings: the other arguments of `nas.job.supernets.rank_supernets`.

        Raises the errors of `nas.job.supernets.rank_supernets`.
        """
        from nas.job.supernets import rank_supernets

        with shown(progress) as bars:
            return rank_supernets(self, command="nas.open_run", progress=bars, **settings)

    def split(
        self,
        pick: str,
        *,
        device: Path | str,
        server: Path | str,
        bandwidth_mbps: float,
        rtt_ms: float,
        progress: JobProgress | bool | None = True,
        **settings: Any,
    ) -> SplitReport:
        """Return the best place to cut a network between a device and a server, or none.

        Args:
            pick: the beginning of the network's digest.
            device, server: latency tables of the two machines.
            bandwidth_mbps: bandwidth of the link between them, in megabits a second.
            rtt_ms: round trip of the link, in milliseconds.
            progress: see `Pick.export`.
            settings: the other arguments of `nas.plans.split_run.split_run`.

        Raises the errors of `nas.plans.split_run.split_run`.
        """
        from nas.plans.split import Link
        from nas.plans.split_run import split_run

        link = Link(bandwidth_mbps, rtt_ms)
        with shown(progress) as bars:
            return split_run(self, pick, Path(device), Path(server), link, bars, **settings)

    @contextmanager
    def _renewing_report(self) -> Iterator[None]:
        """Write the report at the end of the context, also if some of several networks failed."""
        from nas.report import page

        try:
            yield
        except (TrainingError, ExportError):
            page.build(self)
            raise
        page.build(self)


class Pick(Candidate):
    """A member of the front of a run, which can be trained and exported.

    Example:
        >>> pick = nas.open_run("results/quickstart").pick(max_latency_ms=2.0)
        >>> pick.export("onnx", "onnx-int8").path
        PosixPath('results/quickstart/models/jf2a')
    """

    _run: OpenedRun = PrivateAttr()
    _option: Option = PrivateAttr()

    @classmethod
    def of_run(cls, run: OpenedRun, option: Option) -> Pick:
        """Return an option of a run as a pick."""
        pick = cls.model_construct(**dict(option.member))
        pick._run, pick._option = run, option
        return pick

    @property
    def file(self) -> ExportedFile | None:
        """The exported file that was chosen, with its own accuracy and latency.

        None if the choice was not among files, see `OpenedRun.pick`.
        """
        return self._option.file

    @property
    def path(self) -> Path | None:
        """Path of `file`; None without one."""
        return self._run.path / self._option.path if self.file else None

    def export(
        self, *formats: str, progress: JobProgress | bool | None = True, **settings: Any
    ) -> ModelFolder:
        """Export the network to files that are checked with their own runtimes.

        A network that is not trained to the end is trained first, which takes a while.

        Args:
            formats: names of formats; by default that of the runtime of the search, and ONNX in
                float32 and in int8.
            progress: True shows bars and messages on a terminal or in a notebook, False nothing; or
                what receives stages, progress and messages.
            settings: the other settings, see `nas.deploy.requests.ExportRequest`.

        Returns:
            The folder of the model, `models/<id>` of the run.

        Raises the errors of `OpenedRun.export`.
        """
        (folder,) = self._run.export(
            self.digest, formats=formats or None, progress=progress, **settings
        )
        return folder

    def to_torch(self) -> Network:
        """Return the network with its trained weights. See `OpenedRun.network`."""
        return self._run.network(self.digest)
