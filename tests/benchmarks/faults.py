"""Run tests/job/test_faults.py with more stops, and with a disk that fills page by page.

python -m tests.benchmarks.faults
"""

import os
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    os.environ["NAS_FAULTS"] = "thorough"
    test_file = Path(__file__).parents[1] / "job" / "test_faults.py"
    sys.exit(pytest.main([str(test_file), "-p", "no:xdist", "-o", "timeout=3600"]))
