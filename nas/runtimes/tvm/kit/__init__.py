"""Devices that have only a shell: the user runs a program there, and takes its results home."""
