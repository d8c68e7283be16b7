"""NVIDIA GPUs: the device, and how kernels and dispatch costs are timed on it."""
