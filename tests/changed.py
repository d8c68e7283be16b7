"""Print the files of tests for what changed since a commit: `python -m tests.changed [COMMIT]`.

They are the test files that changed, and for each other module its mirror in `tests/`, or those of
the mirrored folder if it has none. What many tests share in `tests/` itself has no tests. COMMIT is
where this branch left `main` by default.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from tests.markdown import ROOT


def main(arguments: list[str]) -> None:
    base = arguments[0] if arguments else _git("merge-base", "main", "HEAD")[0]
    changed = _git("diff", "--name-only", base) + _git("ls-files", "--others", "--exclude-standard")
    print(*sorted({str(each) for name in changed for each in mirrors(PurePosixPath(name), ROOT)}))


def mirrors(path: PurePosixPath, root: Path) -> Iterable[Path]:
    """Return the test files of a file of a repository, which may have been deleted."""
    if path.suffix != ".py" or path.parts[0] not in ("nas", "tests"):
        return []
    mirror = root / "tests" / Path(*path.parts[1:])
    if path.parts[0] == "nas":
        mirror = mirror.with_name(f"test_{path.name}")
    if mirror.name.startswith("test_") and mirror.exists():
        files = [mirror]
    else:
        files = [] if path.parts[:-1] == ("tests",) else sorted(mirror.parent.glob("test_*.py"))
    return [each.relative_to(root) for each in files]


def _git(*command: str) -> list[str]:
    return subprocess.run(
        ["git", *command], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()


if __name__ == "__main__":
    main(sys.argv[1:])
