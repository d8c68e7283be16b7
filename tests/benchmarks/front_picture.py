"""Draws docs/front.png: the top of a run's report, as a browser shows it.

    python -m tests.benchmarks.front_picture results/example docs/front.png

The report is written anew, into a copy of the run, so that the picture shows the present page.
Needs Chromium.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from nas.report import page
from nas.run.run import open_run

WINDOW = "1240,895"
"""Width and height of the page in pixels: down to the end of the figure."""


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("out", type=Path, help="the .png file")
    arguments = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        parser.error("Chromium is not installed")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(shutil.copytree(arguments.run, Path(folder) / arguments.run.name))
        report = page.build(open_run(run))
        subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--disable-background-networking",
                f"--user-data-dir={folder}/profile",
                f"--window-size={WINDOW}",
                f"--screenshot={arguments.out.resolve()}",
                report.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )


if __name__ == "__main__":
    main()
