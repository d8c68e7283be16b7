"""Damages every file that the tool reads for as long as asked, and prints what no command may do.

`python -m tests.benchmarks.fuzz --minutes 60`. Each finding is printed with the damaged content's
path; `--only` repeats one target.
"""

import argparse
import collections
import random
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.corpus import make_corpus
from tests.fuzz.targets import Target, run, try_target
from tests.mini_job import write_job

ROUND_EXAMPLES = 100
SLOW_ROUND_EXAMPLES = 5


def fuzz(target: Target, folder: Path, number: int) -> tuple[int, str, bytes]:
    """Try one target with some examples.

    Returns:
        How many were tried, the finding if there is one, and the smallest content that shows it.
    """
    whole = (folder / target.file).read_bytes()
    tried = 0
    content = b""

    @seed(number)
    @settings(
        max_examples=SLOW_ROUND_EXAMPLES if target.is_slow else ROUND_EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal tried, content
        tried += 1
        content = data.draw(target.damage(whole))
        try_target(target, folder, content)

    try:
        check()
    except Exception as error:  # whatever it is, it is the finding
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        return tried, f"{type(error).__name__}: {error}", content
    return tried, "", b""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="A part of the targets' names.", default="")
    parser.add_argument("--out", type=Path, help="Folder for the contents that show findings.")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="fuzz-"))
    out.mkdir(parents=True, exist_ok=True)
    tried: collections.Counter[str] = collections.Counter()
    findings: dict[str, str] = {}
    numbers = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        finished, folder = Path(name) / "finished", Path(name) / "corpus"
        finished.mkdir()
        folder.mkdir()
        write_job(finished)
        status, _, err = run(finished, ("run", "job.toml", "--out", "results/mini"))
        assert status == 0, err
        targets = make_corpus(finished, folder)
        chosen = [each for each in targets if arguments.only in each.name]
        end = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < end:
            for target in chosen:
                count, finding, content = fuzz(target, folder, numbers.getrandbits(32))
                tried[target.name] += count
                if finding and f"{target.name}: {finding[-300:]}" not in findings:
                    path = out / f"{len(findings)}-{Path(target.file).name}"
                    path.write_bytes(content)
                    findings[f"{target.name}: {finding[-300:]}"] = str(path)
                    print(f"FINDING {target.name} ({path}):\n{finding[-1500:]}\n", flush=True)
                if time.monotonic() > end:
                    break
    for name, count in tried.items():
        print(f"{name:<28} {count} damaged files")
    print(f"{sum(tried.values())} damaged files, {len(findings)} findings; contents in {out}")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
