"""`TrainingState`: weights with their optimizer and their moving average."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from nas.supernet.checkpoint import require_tensors
from nas.supernet.recipe import make_optimizer, optimizer_step
from nas.supernet.settings import TrainingSettings


class TrainingState:
    """The weights of a supernet or a network with their optimizer and their moving average.

    This is what a checkpoint of a training holds.

    Args:
        module: the module that is trained, on the device that trains it.
        settings: settings of the training.

    Attributes:
        optimizer: the optimizer of the module's parameters.
    """

    def __init__(self, module: nn.Module, settings: TrainingSettings) -> None:
        self._module = module
        self._decay = settings.average
        self.optimizer = make_optimizer(module, settings)
        self._averages: list[Tensor] = []

    @torch.no_grad()
    def update(self, step: int, learning_rate: float) -> None:
        """Update the weights by their gradients, and the moving average by the weights.

        The decay of the average grows over the first steps, so that the initial weights are soon
        forgotten.

        Args:
            step: number of the step, from 0.
            learning_rate: learning rate of the step.
        """
        optimizer_step(self.optimizer, learning_rate)
        if not self._decay:
            return
        weights = [parameter.detach() for parameter in self._module.parameters()]
        if not self._averages:
            self._averages = [weight.clone() for weight in weights]
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, weights, 1 - decay)

    @torch.no_grad()
    def use_average(self) -> bool:
        """Replace the weights by their moving average; return whether there is one."""
        for parameter, average in zip(self._module.parameters(), self._averages, strict=False):
            parameter.copy_(average)
        return bool(self._averages)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights, the optimizer's tensors and the averaged weights, by name."""
        tensors = {f"weights.{name}": t for name, t in self._module.state_dict().items()}
        for name, parameter in self._module.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        names = [name for name, _ in self._module.named_parameters()]
        averages = zip(names, self._averages, strict=False)
        return tensors | {f"average.{name}": average for name, average in averages}

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor], path: Path) -> None:
        """Restore what `state_dict` returned.

        Args:
            tensors: tensors by name.
            path: file that the tensors were read from, for error messages.

        Raises:
            CheckpointError: the tensors belong to another training.
        """
        parameters = dict(self._module.named_parameters())
        weights = self._module.state_dict()
        expected = {f"weights.{name}": weight for name, weight in weights.items()}
        for prefix in ("average", "optimizer.momentum_buffer"):
            optional = {f"{prefix}.{name}": parameter for name, parameter in parameters.items()}
            if optional.keys() & tensors.keys():
                expected |= optional
        require_tensors(path, tensors, expected)
        # `copy_` into an empty tensor keeps the parameter's memory format, which decides the
        # rounding.
        self._averages = [
            torch.empty_like(parameter).copy_(tensors[f"average.{name}"])
            for name, parameter in parameters.items()
            if f"average.{name}" in tensors
        ]
        for name, weight in weights.items():
            weight.copy_(tensors[f"weights.{name}"])
        for name, parameter in parameters.items():
            momentum = tensors.get(f"optimizer.momentum_buffer.{name}")
            if momentum is not None:
                buffer = torch.empty_like(parameter).copy_(momentum)
                self.optimizer.state[parameter] = {"momentum_buffer": buffer}
