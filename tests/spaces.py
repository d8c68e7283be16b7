"""Spaces that ship, chosen so that tests need not repeat what differs in sizes only."""

WITH_EVERY_BLOCK = (
    "mobilenet_v1",
    "mobilenet",
    "mobilenet_v3",
    "shufflenet",
    "shufflenet_v1",
    "squeezenet",
)
"""Spaces that together have every block."""

OF_EVERY_STRUCTURE = (
    "mobilenet_v1_0.25",
    "mobilenet_v2_0.35",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "shufflenet_v1_g3",
    "shufflenet_v2_0.5",
    "squeezenet_1.1",
    "squeezenet_1.0_complex_bypass",
)
"""Published networks; the others have the same ops in other sizes."""
