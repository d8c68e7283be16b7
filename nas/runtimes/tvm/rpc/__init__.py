"""Boards behind TVM RPC: kernels are compiled on this machine and run on the board."""
