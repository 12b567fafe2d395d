"""The files that name packages, versions and commands say the same thing."""

import os
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTHON_NAMES = {
    "pytorch": "torch",
    "python-build": "build",
}  # conda-forge's name -> the Python package's, where they differ
PIP_ALONE = {"playwright", "sphinx-mathjax-offline"}  # conda-forge has none; `pip: -e .[test]` brings them
CUDA = re.compile(r"(nvidia|cuda|triton|pytorch-triton)\b")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


PROJECT = tomllib.loads(read("pyproject.toml"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LISTED = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
RANGES = [need for need in map(Requirement, LISTED) if need.name != PROJECT["name"]]
ENVIRONMENT = yaml.safe_load(read("environment.yml"))
PINS = [Requirement(line) for line in read("constraints.txt").splitlines() if not line.startswith("#")]


def name_of(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


def holds(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def version_of(pin: Requirement) -> str:
    return str(pin.specifier).removeprefix("==")


PINNED = {name_of(pin): version_of(pin) for pin in PINS if holds(pin)}


def closure(roots: list[Requirement]) -> list[Requirement]:
    """All requirements that pip meets from ``roots`` on, through what is installed here, without CUDA's."""
    met, seen, todo = [], set(), list(roots)
    while todo:
        requirement = todo.pop()
        if CUDA.match(name_of(requirement)):
            continue
        met.append(requirement)
        for extra in {"", *requirement.extras}:
            if (name_of(requirement), extra) not in seen:
                seen.add((name_of(requirement), extra))
                needs = map(Requirement, metadata.requires(requirement.name) or [])
                todo += [need for need in needs if holds(need, extra)]
    return met


def conda_ranges() -> dict[str, SpecifierSet]:
    """The packages of environment.yml under their Python names."""
    lines = [line.split(maxsplit=1) for line in ENVIRONMENT["dependencies"] if isinstance(line, str)]
    return {PYTHON_NAMES.get(name, name): SpecifierSet(*spec) for name, *spec in lines}


def test_environment_has_the_ranges_of_pyproject():
    ranges = {name_of(need): need.specifier for need in RANGES if name_of(need) not in PIP_ALONE}
    own = {"python": SpecifierSet(PROJECT["requires-python"]), "pip": SpecifierSet()}
    assert conda_ranges() == ranges | own


def test_the_test_extra_takes_in_all_others():
    own = [need for need in map(Requirement, EXTRAS["test"]) if need.name == PROJECT["name"]]
    assert own[0].extras == EXTRAS.keys() - {"test"}


def test_environment_installs_the_package_itself():
    assert ENVIRONMENT["name"] == PROJECT["name"]
    assert {"pip": ["-e .[test]"]} in ENVIRONMENT["dependencies"]


@pytest.mark.parametrize("requirement", RANGES, ids=name_of)
def test_dependency_is_a_range_and_its_pin_lies_inside(requirement):
    assert {spec.operator for spec in requirement.specifier} in ({">="}, {">=", "<"})
    assert requirement.specifier.contains(PINNED[name_of(requirement)])


def test_the_lowest_versions_are_those_of_the_ranges():
    lowest = {name_of(pin): pin for pin in map(Requirement, read("constraints-lowest.txt").split())}
    assert lowest.keys() == {name_of(need) for need in RANGES}
    for need in RANGES:
        (least,) = (spec.version for spec in need.specifier if spec.operator == ">=")
        assert str(lowest[name_of(need)].specifier) == f"=={least}"


def test_constraints_are_exact_sorted_and_without_cuda():
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in PINS)  # nothing like 2.13.0+cpu
    assert [name_of(pin) for pin in PINS] == sorted(name_of(pin) for pin in PINS)
    assert [pin.name for pin in PINS if CUDA.match(name_of(pin))] == []


@pytest.mark.skipif(
    Path(sys.prefix).resolve() != (ROOT / ".venv").resolve(), reason="needs the environment that make builds"
)
def test_constraints_are_the_closure_of_the_dependencies():
    met = closure(RANGES)
    assert PINNED.keys() == {name_of(requirement) for requirement in met}
    assert [str(need) for need in met if not need.specifier.contains(PINNED[name_of(need)])] == []


def test_version_is_the_same_everywhere():
    assert metadata.version("toastlib") == PROJECT["version"]
    assert yaml.safe_load(read("CITATION.cff"))["version"] == PROJECT["version"]
    assert re.search(r"^## \[([^\]]+)\]", read("CHANGELOG.md"), re.M)[1] == PROJECT["version"]


def test_oldest_python_is_the_same_everywhere():
    major, minor = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["requires-python"]).groups()
    assert tomllib.loads(read("pyproject.toml"))["tool"]["ruff"]["target-version"] == f"py{major}{minor}"
    assert f"sys.version_info < ({major}, {minor})" in read("Makefile")
    for page in ("Makefile", "README.md", "CONTRIBUTING.md"):
        assert f"Python {major}.{minor} or newer" in read(page), page


@pytest.mark.parametrize(
    ("page", "needed"),
    [("README.md", {"study", "test"}), ("CONTRIBUTING.md", {"test", "lint", "lab"}), (".ci/run", {"test"})],
)
def test_make_commands_exist(page, needed):
    named = set(re.findall(r"(?:^|[`$]|exec) *make ([a-z-]+)", read(page), re.M))
    targets = set(re.findall(r"^([a-z-]+)[a-z -]*:", read("Makefile"), re.M))
    assert needed <= named <= targets


def test_readme_links_the_install_line_for_those_without_make():
    assert "](docs/install.md)" in read("README.md")
    assert re.search(r"pip install -c constraints\.txt -e [\"']?\.\[test\]", read("docs/install.md"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_ci_script_is_executable():
    assert os.access(ROOT / ".ci/run", os.X_OK)
