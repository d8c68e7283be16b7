"""Schedules for CPUs: loop nests written as TIR, and the candidates for their tile sizes."""

from nas.schedules.cpu.templates import CpuTemplates

__all__ = ["CpuTemplates"]
