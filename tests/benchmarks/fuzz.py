"""Run tests/fuzz/test_fuzz.py with more damages, other ones at each start.

python -m tests.benchmarks.fuzz --rounds 60
"""

import argparse
import os
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="times as many as the test tries")
    os.environ["NAS_FUZZ_ROUNDS"] = str(parser.parse_args().rounds)
    test_file = Path(__file__).parents[1] / "fuzz" / "test_fuzz.py"
    sys.exit(pytest.main([str(test_file), "-k", "damaged", "-p", "no:xdist", "-o", "timeout=0"]))
