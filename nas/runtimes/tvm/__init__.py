"""Apache TVM on this machine's processor or GPU, or on boards behind TVM RPC; see `runtime`."""
