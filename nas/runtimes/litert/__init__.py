"""LiteRT (TensorFlow Lite) on this machine's processor; see `runtime`."""
