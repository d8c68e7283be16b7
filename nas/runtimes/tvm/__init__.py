"""Apache TVM on this machine's processor or GPU, or on boards elsewhere; see `runtime`."""
