"""What a run's folder tells about how the run came about."""

import json
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from toastlib.data.catalog import ROOT
from toastlib.runs.folders import code_hash
from toastlib.runs.gpus import gpu_names
from toastlib.runs.parameters import notebook_parameters

VERSIONS = ("toastlib", "torch", "transformers", "datasets", "numpy", "papermill")


def write_manifest(part: Path, notebook: Path, given: dict[str, Any], started: float) -> None:
    """Write ``manifest.json``: it is there when all else is.

    Parameters
    ----------
    part
        The folder, with everything that the run has left.
    notebook
        The notebook that was run.
    given
        The parameters that were given to it.
    started
        When, in seconds since 1970.
    """
    parameters = all_parameters(notebook, given)
    manifest = {
        "notebook": notebook.stem,
        "code": code_hash(notebook),
        "given": given,
        "parameters": parameters,
        "device": _device(parameters.get("device", "auto")),
        "host": platform.node(),
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 1),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: metadata.version(package) for package in VERSIONS},
        "files": sorted(path.name for path in part.iterdir()),
    }
    (part / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def all_parameters(notebook: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Given parameters and, for all others, the notebook's own; without ``results_dir``, which tells nothing."""
    own = {name: parameter.default for name, parameter in notebook_parameters(notebook).items()}
    return {name: value for name, value in (own | given).items() if name != "results_dir"}


def _device(name: str) -> str:
    """The device that the notebook found under this name; torch stays unloaded, it would take memory on a GPU."""
    first = next(iter(gpu_names().values()), "")
    return first if first and (name == "auto" or name.startswith("cuda")) else name.replace("auto", "cpu")


def _commit() -> str | None:
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with changes" if changed else "")
