"""Apache TVM on this machine's processor or GPU, or on another device; see `runtime`."""
