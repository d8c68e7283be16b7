"""The accuracy half: one weight-sharing supernet a family, its training and its scores."""

from nas.supernet.evaluation import evaluate
from nas.supernet.quick_evaluation import FirstLook, first_look
from nas.supernet.settings import TrainingSettings
from nas.supernet.training import Progress, StepTime, measure_step, train
from nas.supernet.weights import Supernet

__all__ = [
    "FirstLook",
    "Progress",
    "StepTime",
    "Supernet",
    "TrainingSettings",
    "evaluate",
    "first_look",
    "measure_step",
    "train",
]
