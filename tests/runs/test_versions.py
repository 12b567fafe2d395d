"""Versions: which are installed, and which of them no test ran with."""

from importlib import metadata

import pytest

from toastlib.runs import versions
from toastlib.runs.versions import installed, untested


def test_what_is_installed_is_told_and_what_an_extra_brings_may_be_absent(monkeypatch):
    here = installed()
    assert here["torch"] == metadata.version("torch")
    assert here["toastlib"] == metadata.version("toastlib")
    monkeypatch.setattr(versions, "PACKAGES", ("torch", "no-such-package"))
    assert installed() == {name: here[name] for name in ("python", "torch")}


@pytest.mark.parametrize(
    ("version", "is_tested"),
    [("2.13.0+cpu", True), ("2.13.7", True), ("2.9.0", True), ("2.1.3", False), ("3.13.0", False)],
)
def test_a_version_is_tested_if_its_first_two_numbers_are(version, is_tested, tmp_path, monkeypatch):
    (tmp_path / "constraints.txt").write_text("# a comment\ntorch==2.13.0\nothers==1\n")
    (tmp_path / "constraints-lowest.txt").write_text("torch==2.9\n")
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    monkeypatch.setattr(versions, "installed", lambda: {"torch": version, "numpy": "1.0"})
    assert untested() == ({} if is_tested else {"torch": (version, ["2.9", "2.13.0"])})


def test_the_pythons_are_those_that_the_package_names(monkeypatch):
    named = [line.rpartition(" ")[2] for line in metadata.metadata("toastlib").get_all("Classifier") if "3." in line]
    for version in named:
        monkeypatch.setattr(versions, "installed", lambda version=version: {"python": f"{version}.5"})
        assert untested() == {}
    monkeypatch.setattr(versions, "installed", lambda: {"python": "3.99.0"})
    assert untested() == {"python": ("3.99.0", named)}
