"""The runtimes that come with the project, a package each: they compile and time kernels.

`nas.latency.runtime` is their contract. A runtime of another package is found by its entry point.
"""
