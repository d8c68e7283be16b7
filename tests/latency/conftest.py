"""Puts this folder on the import path, for `networks` and `fake_runtime`."""
