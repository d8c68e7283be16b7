"""A delegate that stands in for a vendor's: it takes operators, and waits."""

import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "stand_in_delegate.c"

VENDOR_OPERATOR, CONV_2D, AVERAGE_POOL_2D = "takes=32", "takes=3", "takes=1"
"""Options of the delegate: the operators that it takes, by their codes in the schema."""


def compile_delegate(folder: Path) -> Path:
    """Compile the delegate; return its path."""
    library = folder / "libstandin_delegate.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, SOURCE], check=True)
    return library
