"""Quantise networks as an export does for the processor of this machine."""

import numpy as np
from numpy.typing import NDArray

from nas.deploy.model import TrainedModel
from nas.quantisation.network import QuantisedNetwork, native_weight_bits
from nas.quantisation.post_training import quantise


def quantise_here(model: TrainedModel, images: NDArray[np.float32]) -> QuantisedNetwork:
    """Quantise a model with weights of 7 bits on an x86 processor without VNNI, else of 8.

    There, ONNX Runtime and OpenVINO add products of two pairs in 16 bits, which 8-bit weights
    exceed.
    """
    weight_bits = native_weight_bits()
    return quantise(model.graph, model.weights, images, weight_bits=weight_bits)
