"""Trains a supernet on digits, and kills its process behind one of the steps.

    python -m tests.supernet.killed_training FOLDER STEP EPOCHS

A step of 0 lets it train to the end.
"""

import os
import signal
import sys

import torch

from nas.data import load_dataset
from nas.space import load_space
from nas.supernet.recipe import Recipe
from nas.supernet.training import train


def main() -> None:
    folder, last_step, epochs = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    data = load_dataset("digits", validation_fraction=0.5)
    space = load_space("mobilenet_tiny", image_size=8, channels=1, classes=10)
    recipe = Recipe(epochs=epochs, device="cpu", checkpoint_seconds=0, colour=0.2)

    def progress(step, *_):
        if step == last_step:
            os.kill(os.getpid(), signal.SIGKILL)

    train(space, data, folder, recipe, seed=3, progress=progress)


if __name__ == "__main__":
    main()
