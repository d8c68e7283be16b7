"""Kernels for processors: loop nests written as TIR, and the sweep that finds their tile sizes."""

from nas.schedules.cpu.templates import CpuTemplates

__all__ = ["CpuTemplates"]
