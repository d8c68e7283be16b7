"""Schedules for NVIDIA GPUs: kernels written as TIR, and the candidates for their tile sizes."""
