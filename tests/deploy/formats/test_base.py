"""What all formats share: the versions of the packages that run their files."""

import sys
from importlib.metadata import packages_distributions, version

from nas.deploy.formats import all_formats, base
from nas.deploy.formats.base import package_versions


def test_versions_are_those_of_the_distributions_that_hold_the_packages():
    distributions = packages_distributions()
    named = {name for each in all_formats() for name in each.packages}
    for package in {*named, "PIL", "numpy", "_pytest", "six"}:
        names = dict.fromkeys(distributions.get(package, ()))
        assert package_versions([package]) == {name: version(name) for name in names}, package


def test_version_of_a_distribution_is_that_of_the_first_folder(tmp_path, monkeypatch):
    for folder, number in (("first", "2.0"), ("second", "1.0")):
        info = tmp_path / folder / f"of_two-{number}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: of-two\nVersion: {number}\n")
        (info / "RECORD").write_text("two/__init__.py,,\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])
    assert package_versions(["two"]) == {"of-two": "2.0"}
    base._distributions.cache_clear()
