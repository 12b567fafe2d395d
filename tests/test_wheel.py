"""The wheel is whole: from an empty folder, without the checkout, the commands work."""

import os
import subprocess
import sys
import zipfile

import pytest
from tiny import environment_without_toastlib

from toastlib.data.catalog import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def toast(wheel, tmp_path_factory):
    """Run a command of the installed wheel in a folder; what it prints."""
    python = environment_without_toastlib(tmp_path_factory.mktemp("environment"))
    packages = next((python.parent.parent / "lib").glob("python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(packages)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(folder, *arguments):
        command = [str(python), "-m", *arguments]
        done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def test_it_is_small_and_has_the_licences(wheel):
    assert wheel.stat().st_size < 15 * 2**20
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {f"toastlib/study/data/models/{model}/README.md" for model in ("vit-mini", "gpt-mini")} <= set(names)


def test_a_smaller_model_is_made_in_an_empty_folder(toast, tmp_path):
    sizes = ["--train-size", "300", "--test-size", "50", "--calibration-size", "100"]
    toast(
        tmp_path,
        "toastlib.cli",
        "approximate",
        "vit-mini",
        "--data",
        "digits",
        "--plan",
        "2->3",
        "--out",
        "smaller",
        *sizes,
    )
    assert (tmp_path / "smaller" / "report.html").is_file()


def test_a_notebook_runs_from_the_wheel_and_from_a_copy(toast, tmp_path):
    printed = toast(tmp_path, "toastlib.cli", "run", "00")
    assert str(tmp_path / "results" / "00_quickstart") in printed
    toast(tmp_path, "toastlib.cli", "notebooks", "here")
    toast(tmp_path / "here", "papermill", "00_quickstart.ipynb", "out.ipynb")
    (tmp_path / "here" / "16_better_maps.ipynb").unlink()
    assert "16_better_maps" not in toast(tmp_path / "here", "toastlib.cli", "params")
