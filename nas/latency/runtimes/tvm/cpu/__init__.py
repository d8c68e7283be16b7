"""Kernels for processors: loop nests written as TIR, and the sweep that finds their tile sizes."""

from nas.latency.runtimes.tvm.cpu.templates import CpuTemplates

__all__ = ["CpuTemplates"]
