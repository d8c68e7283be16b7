"""The runtimes that come with the project, one package each. They compile and time kernels.

The contract of a runtime is `nas.latency.runtime`. Runtimes are found by their entry points, those
of other packages too.
"""
