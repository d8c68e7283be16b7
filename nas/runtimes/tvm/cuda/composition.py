"""How latencies compose on a GPU, which runs while the host already launches what comes next.

Kernels are those of every TVM target. A kernel's own latency is what it adds to a queue that never
runs empty, the gap to the next kernel included (see `queue`). In a network the queue can be empty:
a kernel starts when the host has launched it and the kernel before it is done, whichever is later,
as in a line of two machines. A network of short kernels takes as long as launching them, one of
long kernels as long as these, and a mixed one is neither's maximum: launches hide behind a long
kernel until the queue is empty again.

Weights come from the second-level cache in both cases, as long as all of a network's fit there:
what is nearer is emptied between kernels anyway. So kernels are timed on one set of weights, and
`nas.latency.cache_model` adds what networks of more of them wait for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from nas.latency import cache_model
from nas.runtimes.tvm.fusion import BY_PIECE, kernels

__all__ = [
    "BY_PIECE",
    "DISPATCH_PARTS",
    "DTYPES",
    "FEATURE",
    "kernels",
    "predicted_us",
]

DISPATCH_PARTS = ("launch", "invocation", *cache_model.PARTS)
"""What a prediction needs to know beside the kernels; see `nas.latency.cache_model`."""

DTYPES = ("float32", "float16")
"""Of weights and activations; sums are float32 in both."""

FEATURE = "cuda"
"""Among the features of a device whose latencies compose so."""


def predicted_us(kernels_us: Sequence[float], dispatch_us: Mapping[str, float]) -> float:
    """Latency of a network, from entering the VM to the end of the last kernel.

    Args:
        kernels_us: latency of each kernel, in the order in which they are launched.
        dispatch_us: cost of an `invocation`, which is over when the first kernel can start, and of
            one `launch`, which is the host's alone.
    """
    launched = end = dispatch_us["invocation"]
    launch = dispatch_us["launch"]
    for kernel_us in kernels_us:
        end = max(end, launched) + kernel_us
        launched += launch
    return end
