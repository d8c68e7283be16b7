"""Draws docs/front.png: the top of a run's report, as a browser shows it.

    python -m tests.benchmarks.front_picture results/example docs/front.png

The report is written anew, into a copy of the run, so that the picture shows the present page.
Needs Chromium.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from nas.opened_run import open_run
from nas.report import page
from tests.report.browser import opened, running_browser

WIDTH, HEIGHT = 1240, 1010
"""Size of the picture in pixels: down to the end of the figure."""


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("out", type=Path, help="the .png file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        run = Path(shutil.copytree(arguments.run, Path(folder) / arguments.run.name))
        report = page.build(open_run(run))
        with opened(browser, report, width=WIDTH, height=HEIGHT) as shown:
            shown.screenshot(path=arguments.out)


if __name__ == "__main__":
    main()
