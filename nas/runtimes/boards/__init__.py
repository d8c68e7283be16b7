"""Boards behind TVM RPC: their addresses, connections to them, and those that time files."""
