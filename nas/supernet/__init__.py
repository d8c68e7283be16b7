"""Weight-sharing supernets: shared weights, training, evaluation and ranking quality."""

from nas.supernet.evaluation import evaluate
from nas.supernet.quick_evaluation import QuickEvaluation, evaluate_quickly
from nas.supernet.settings import TrainingSettings
from nas.supernet.standalone import train_standalone
from nas.supernet.training import TrainingProgress, measure_epoch, train
from nas.supernet.weights import Supernet

__all__ = [
    "QuickEvaluation",
    "Supernet",
    "TrainingProgress",
    "TrainingSettings",
    "evaluate",
    "evaluate_quickly",
    "measure_epoch",
    "train",
    "train_standalone",
]
