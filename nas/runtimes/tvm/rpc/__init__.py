"""Devices elsewhere: kernels are compiled here and run on boards behind TVM RPC."""
