"""The wheel is whole: from an empty folder, without the checkout, the commands work."""

import os
import subprocess
import sys
import tarfile
import zipfile

import pytest
from tiny import environment_without_toastlib

from toastlib.data.catalog import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of an sdist, and of the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (file,) = built.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def toast(wheel, tmp_path_factory):
    """Run a command of the installed wheel in a folder; what it prints."""
    python = environment_without_toastlib(tmp_path_factory.mktemp("environment"))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True)
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
    licences = {name.partition("licenses/")[2] for name in names}
    assert {"LICENSE", "data/images/mnist-mini/LICENSE", "data/images/fashion-mnist-mini/LICENSE"} <= licences
    assert "toastlib/study/CITATION.cff" in names
    assert {f"toastlib/study/data/models/{model}/README.md" for model in ("vit-mini", "gpt-mini")} <= set(names)


def test_the_sdist_has_what_the_tests_need(built):
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "tests/tiny.py", "notebooks/00_quickstart.ipynb", "docs/conf.py"} <= names


def test_a_smaller_model_is_made_in_an_empty_folder(toast, tmp_path):
    sizes = "--train-size 300 --test-size 50 --calibration-size 100"
    command = f"toastlib.cli approximate vit-mini --data digits --plan 2->3 --out smaller {sizes}"
    toast(tmp_path, *command.split())
    assert (tmp_path / "smaller" / "report.html").is_file()


def test_a_notebook_runs_from_the_wheel_and_from_a_copy(toast, tmp_path):
    printed = toast(tmp_path, "toastlib.cli", "run", "00")
    assert str(tmp_path / "results" / "00_quickstart") in printed
    toast(tmp_path, "toastlib.cli", "notebooks", "here")
    toast(tmp_path / "here", "papermill", "00_quickstart.ipynb", "out.ipynb")
    (tmp_path / "here" / "16_better_maps.ipynb").unlink()
    assert "16_better_maps" not in toast(tmp_path / "here", "toastlib.cli", "params")
