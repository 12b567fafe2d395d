"""Versions of Python and of the packages that results depend on: what is installed, and what was tested."""

import platform
import re
from contextlib import suppress
from importlib import metadata

from toastlib.data.catalog import ROOT
from toastlib.plugins import GROUP

PACKAGES = ("toastlib", "torch", "transformers", "datasets", "numpy", "papermill")
TESTED = ("constraints-lowest.txt", "constraints.txt")  # exact versions that the tests were run with


def installed() -> dict[str, str]:
    """Version of Python, of each of `PACKAGES`, which may be absent, and of packages that are plug-ins."""
    found = {"python": platform.python_version()}
    found |= {entry.dist.name: entry.dist.version for entry in metadata.entry_points(group=GROUP)}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def untested() -> dict[str, tuple[str, list[str]]]:
    """Name -> its version here and the tested ones, where none of those is the same up to the second number."""
    classifiers = metadata.metadata("toastlib").get_all("Classifier")
    tested = {"python": [line.rpartition(" :: ")[2] for line in classifiers if re.search(r"Python :: 3\.\d", line)]}
    for file in TESTED:
        for name, version in re.findall(r"^([\w-]+)==(\S+)", (ROOT / file).read_text(encoding="utf-8"), re.M):
            tested.setdefault(name, []).append(version)
    releases = {name: [version.split(".")[:2] for version in versions] for name, versions in tested.items()}
    return {
        name: (version, tested[name])
        for name, version in installed().items()
        if name in tested and version.split(".")[:2] not in releases[name]
    }
