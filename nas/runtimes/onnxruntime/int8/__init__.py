"""Quantised networks: unsigned activations and signed weights of eight bits, channels last."""
