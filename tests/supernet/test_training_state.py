"""The moving average of weights, against a closed form."""

from pathlib import Path

import pytest
import torch
from torch import nn

from nas.errors import CheckpointError
from nas.supernet import TrainingSettings
from nas.supernet.training_state import TrainingState

RATE, DECAY = (
    0.5,
    0.1,
)  # The decay of the first steps is 0.1 or more, so this one holds from step 0.


def walk(state: TrainingState, weight: nn.Parameter, steps: range) -> None:
    """Let a constant gradient move the weight by `RATE` in each step."""
    for step in steps:
        weight.grad = torch.ones_like(weight)
        state.update(step, RATE)


def one_weight(**settings: float) -> tuple[nn.Module, nn.Parameter, TrainingState]:
    module = nn.Module()
    weight = nn.Parameter(torch.zeros(3))
    module.register_parameter("weight", weight)
    return module, weight, TrainingState(module, TrainingSettings(momentum=0.0, **settings))


def test_average_of_a_straight_line_has_its_closed_form():
    _, weight, state = one_weight(average=DECAY)
    walk(state, weight, range(20))
    assert weight[0].item() == pytest.approx(-20 * RATE)
    assert state.use_average()
    lag = DECAY * (1 - DECAY**19) / (1 - DECAY)
    assert weight[0].item() == pytest.approx(-RATE * (20 - lag), rel=1e-6)


def test_without_an_average_the_last_weights_stay():
    _, weight, state = one_weight()
    walk(state, weight, range(3))
    assert not state.use_average()
    assert weight[0].item() == pytest.approx(-3 * RATE)


def test_restored_state_continues_with_the_same_average():
    module, weight, state = one_weight(average=0.9)
    walk(state, weight, range(5))
    saved = {name: tensor.clone() for name, tensor in state.state_dict().items()}
    _, other_weight, other = one_weight(average=0.9)
    other.load_state_dict(saved, Path("checkpoint"))
    for each, own in ((state, weight), (other, other_weight)):
        walk(each, own, range(5, 9))
        each.use_average()
    assert torch.equal(weight, other_weight)
    with pytest.raises(CheckpointError, match="checkpoint has no tensor 'weights.weight'"):
        other.load_state_dict({"average.weight": saved["average.weight"]}, Path("checkpoint"))
    assert set(module.state_dict()) == {"weight"}
