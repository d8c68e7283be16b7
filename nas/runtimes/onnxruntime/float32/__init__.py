"""Float32 networks: tensors in blocks of channels."""
