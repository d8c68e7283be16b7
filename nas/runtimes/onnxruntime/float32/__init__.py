"""Float32 networks: their kernels in plain and blocked layouts."""
