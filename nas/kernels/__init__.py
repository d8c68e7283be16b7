"""Kernels: what a fused kernel computes, its text, and how a graph splits into kernels."""
