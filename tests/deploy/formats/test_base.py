"""What all formats share: the versions of the packages that run their files."""

from importlib.metadata import packages_distributions, version

import pytest

from nas.deploy.formats import all_formats, base
from nas.deploy.formats.base import package_versions


def test_versions_are_those_of_the_distributions_that_hold_the_packages():
    distributions = packages_distributions()
    named = {name for each in all_formats() for name in each.packages}
    for package in {*named, "PIL", "numpy", "_pytest", "six"}:
        names = dict.fromkeys(distributions.get(package, ()))
        assert package_versions([package]) == {name: version(name) for name in names}, package


def test_only_a_package_of_another_name_than_its_distribution_is_searched(monkeypatch):
    monkeypatch.setattr(base.metadata, "distributions", lambda: pytest.fail("all were listed"))
    base._distributions.cache_clear()
    assert package_versions(["numpy"]) == {"numpy": version("numpy")}
