from pathlib import PurePosixPath

import pytest

from tests.changed import mirrors


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("nas/run/front.py", ["run/test_front.py"]),
        ("nas/run/without_mirror.py", ["run/test_deleted.py", "run/test_front.py"]),
        ("nas/graph.py", ["test_graph.py"]),
        ("tests/run/test_front.py", ["run/test_front.py"]),
        ("tests/run/helpers.py", ["run/test_deleted.py", "run/test_front.py"]),
        ("tests/conftest.py", []),
        ("docs/front.md", []),
        ("setup.py", []),
    ],
)
def test_changed_module_has_the_mirrors_its_mirror(tmp_path, changed, expected):
    (tmp_path / "tests" / "run").mkdir(parents=True)
    for name in ("test_graph.py", "conftest.py", "run/test_front.py", "run/test_deleted.py"):
        (tmp_path / "tests" / name).touch()
    files = mirrors(PurePosixPath(changed), tmp_path)
    assert [each.as_posix() for each in files] == [f"tests/{name}" for name in expected]
