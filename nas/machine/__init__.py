"""This machine: its processor, cores and memory, its processes, and its devices for torch."""
