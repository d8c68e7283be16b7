"""`LiteRt`: LiteRT (TensorFlow Lite) with XNNPACK on this machine's processor, or on a device.

Importing this imports no LiteRT. How LiteRT splits a network is compared with its own
profile of operators, in float32 and int8.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Collection, Mapping
from functools import cached_property
from itertools import accumulate, chain
from typing import TYPE_CHECKING

from nas.figures import Figure
from nas.graph import Graph
from nas.kernels.kernel import Kernel
from nas.latency.capabilities import Capabilities
from nas.latency.fused_blocks import entered_by_images
from nas.latency.repeated_kernels import DISPATCH_PARTS
from nas.latency.runtime import Availability, Schedule, package_availability
from nas.quantisation.network import QuantisedNetwork
from nas.runtimes.file_runtime import FileRuntime
from nas.runtimes.litert import fusion, micro

if TYPE_CHECKING:
    from nas.runtimes.litert.kernel_timer import LiteRtKernelTimer


class LiteRt(FileRuntime):
    """Kernels and networks of LiteRT's interpreter, with its XNNPACK delegate.

    See `nas.latency.runtime.Runtime` for the arguments. A target is `cpu`, this machine's
    processor, or a device that has LiteRT, with a delegate or not. Networks of dtype `int8` have
    int8 weights and activations, and a float32 input and output, see `nas.tflite_model`.
    """

    name = "litert"
    module = "nas.runtimes.litert.session"
    packages = ("ai_edge_litert", "tflite_runtime")
    install = "ai-edge-litert"
    settings = ("python", "delegate", "delegate_options")
    capabilities = Capabilities(
        targets=("cpu", "ssh://...", "adb:..."),
        dtypes=("float32", "int8"),
        max_threads=None,
        dispatch_parts=DISPATCH_PARTS,
        has_local_kernels=False,
    )

    @classmethod
    def availability(cls) -> Availability:
        """Return whether LiteRT is installed and loads."""
        return package_availability(
            cls.name,
            "ai-edge-litert",
            "ai_edge_litert.interpreter",
            "pip install 'hardware-nas[tflite]'",
        )

    def kernels(self, graph: Graph, batch: int = 1) -> list[Kernel]:
        """Return the kernels of a network in the order in which they run."""
        return fusion.kernels(graph, self.dtype, batch)

    def kernel_blocks(self, graph: Graph, batch: int = 1) -> list[int]:
        """See `Runtime.kernel_blocks`."""
        lasts = list(accumulate(len(block.folded.ops) - 1 for block in graph.segments))
        launches = fusion.network_launches(graph, self.dtype)
        return [bisect_left(lasts, position) for _, position in launches]

    def block_kernels(self, blocks: Collection[Graph], batch: int = 1) -> list[Kernel]:
        """Return the kernels of blocks, with those of the ends of a network that they may have."""
        first = set(entered_by_images(blocks))
        kernels = (
            fusion.block_kernels(block, self.dtype, first=block in first, batch=batch)
            for block in blocks
        )
        return list(dict.fromkeys(chain.from_iterable(kernels)))

    def weight_bytes(self, kernel: Kernel, schedule: Schedule) -> int:
        """Return the size of a kernel's weights as XNNPACK packs them."""
        return fusion.packed_weight_bytes(kernel)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """Memory of a microcontroller, for int8 networks; see `nas.runtimes.litert.micro`."""
        return micro.FIGURES if self.dtype == "int8" else ()

    def network_figures(self, graph: Graph) -> Mapping[str, float]:
        """See `Runtime.network_figures`. Latencies are not those of the microcontroller."""
        return micro.network_memory(graph).figures if self.figures else {}

    def device_files(self, network: QuantisedNetwork) -> Mapping[str, bytes]:
        """Return the file for microcontrollers, and what its program needs to know."""
        if not self.figures:
            return {}
        data = micro.micro_file(network)
        text = json.dumps(micro.file_memory(data).to_json(), indent=1) + "\n"
        return {"_micro.tflite": data, "_micro.json": text.encode()}

    @cached_property
    def timer(self) -> LiteRtKernelTimer:
        """The timer of the device; the first use imports what writes files."""
        from nas.runtimes.litert.kernel_timer import LiteRtKernelTimer

        has_delegate = self.delegate is not None
        return LiteRtKernelTimer(self.dtype, self.threads, self.files, has_delegate=has_delegate)
