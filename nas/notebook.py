"""`Run` and `Pick`: a run in a notebook or a script, which can train and export its networks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PrivateAttr

from nas.arguments import checked
from nas.run import run as results
from nas.run.candidates import Candidate
from nas.run.front import Limits, select
from nas.run.trained import read_trained

if TYPE_CHECKING:
    from nas.deploy.folder import ModelFolder
    from nas.job import JobProgress
    from nas.torch_network import Network


@checked
def open_run(path: Path | str, data_source: str | None = None) -> Run:
    """Return the results in a run folder.

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
    run = Run(Path(path), data_source)
    _ = run.record
    return run


class Run(results.Run):
    """The results of one run, and what can be made of them. See `nas.run.run.Run`."""

    @checked
    def pick(
        self,
        *,
        max_latency_ms: float | None = None,
        max_macs: int | None = None,
        max_params: int | None = None,
        max_peak_memory_bytes: int | None = None,
        min_accuracy: float | None = None,
    ) -> Pick:
        """Return the most accurate member of the front that meets the limits.

        Trained members are compared by their trained accuracy, see
        `nas.run.front.expected_accuracies`.

        Args:
            max_latency_ms: largest latency in milliseconds.
            max_macs: largest number of multiply-accumulates.
            max_params: largest number of parameters.
            max_peak_memory_bytes: largest number of bytes of activations alive at once.
            min_accuracy: smallest accuracy, a fraction.

        Raises:
            InfeasibleError: no member meets the limits; the message names the nearest.
            RunFolderError: the run has no front.
            RequestError: a limit is not above zero.
        """
        limits = Limits(max_latency_ms, max_macs, max_params, max_peak_memory_bytes, min_accuracy)
        pick = Pick.model_construct(**dict(select(self.members, limits)))
        pick._run = self
        return pick

    @checked(Network="nas.torch_network")
    def network(self, digest: str) -> Network:
        """Return a network of the run as a `torch.nn.Module` in evaluation mode.

        Its weights are those of `nas retrain`, if it was trained to the end. Otherwise they are
        those of the supernet, with statistics of the batch norms computed on training images.

        Args:
            digest: the beginning of its digest, such as an `id` of `trials`.

        Raises the errors of `architecture`, `supernet` and `data`.
        """
        from nas.deploy.retrain import load_trained
        from nas.supernet.evaluation import calibrated_state
        from nas.torch_network import to_torch

        architecture = self.architecture(digest)
        if architecture.digest in read_trained(self.path):
            return load_trained(self, architecture.digest).network
        supernet = self.supernet(architecture.space.name)
        network = to_torch(architecture)
        network.load_state_dict(calibrated_state(supernet, architecture.graph, self.data))
        return network.eval()


class Pick(Candidate):
    """A member of the front of a run, which can be trained and exported.

    Example:
        >>> pick = nas.open_run("results/quickstart").pick(max_latency_ms=2.0)
        >>> pick.export("onnx", "onnx-int8").path
        PosixPath('results/quickstart/models/jf2a')
    """

    _run: Run = PrivateAttr()

    def export(
        self,
        *formats: str,
        max_accuracy_drop: float | None = None,
        weight_bits: int | None = None,
        progress: JobProgress | bool | None = True,
    ) -> ModelFolder:
        """Export the network to files that are checked with their own runtimes.

        A network that is not trained to the end is trained first, which takes a while.

        Args:
            formats: names of formats; by default ONNX in float32 and in int8.
            max_accuracy_drop: largest accuracy that int8 may lose on validation images, as a
                fraction; by default 0.005.
            weight_bits: bits of a weight in int8, 7 or 8; by default what this processor needs.
            progress: True shows bars and messages on a terminal or in a notebook, False nothing; or
                what receives stages, progress and messages.

        Returns:
            The folder of the model, `models/<id>` of the run.

        Raises the errors of `nas.job.exporting.export_run`.
        """
        from nas.deploy.formats import DEFAULT_FORMATS
        from nas.job.exporting import export_run
        from nas.job.progress import shown

        with shown(progress) as bars:
            (folder,) = export_run(
                self._run.path,
                [self.digest],
                formats or DEFAULT_FORMATS,
                max_accuracy_drop=max_accuracy_drop,
                weight_bits=weight_bits,
                data_source=self._run.data_source,
                command="Pick.export",
                progress=bars,
            )
        return folder

    def to_torch(self) -> Network:
        """Return the network with its trained weights. See `Run.network`."""
        return self._run.network(self.digest)
