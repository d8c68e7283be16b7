"""Runs tests/job/test_faults.py at length: more stops, and a disk that fills a page at a time.

python -m tests.benchmarks.faults
"""

import os
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    os.environ["NAS_FAULTS"] = "thorough"
    tests = Path(__file__).parents[1] / "job" / "test_faults.py"
    sys.exit(pytest.main([str(tests), "-p", "no:xdist", "-o", "timeout=3600"]))
