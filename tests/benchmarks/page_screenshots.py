"""Draws the reports of all cases, as a wide window and a phone show them, light and dark.

    python -m tests.benchmarks.page_screenshots OUT --case example markup --report results/*/*.html

Needs Chromium.
"""

import argparse
import tempfile
from itertools import product
from pathlib import Path

from tests.report.browser import PHONE, WIDE, opened, running_browser
from tests.report.cases import CASES, write_case


def main() -> None:
    """Parse the command line and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the pictures")
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--report", nargs="+", type=Path, default=[], help="further reports")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        reports = {name: write_case(name, Path(folder, name)) for name in arguments.case}
        reports |= {report.parent.name: report.resolve() for report in arguments.report}
        for name, report in reports.items():
            for width, scheme in product((WIDE, PHONE), ("light", "dark")):
                with opened(browser, report, width=width, scheme=scheme) as page:
                    path = arguments.out / f"{name}-{width}-{scheme}.png"
                    page.screenshot(path=path, full_page=True)
                    print(path)


if __name__ == "__main__":
    main()
