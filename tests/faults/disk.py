"""A results disk that is full: a clear message, nothing corrupt, and all is done after some space is freed."""

import json
import subprocess

import pytest
from sweeping import WORK, Study

BIG = """\
from pathlib import Path

Path(results_dir, "results.bin").write_bytes(b"x" * 700_000)
"""


@pytest.fixture
def disk(tmp_path):
    """Three megabytes of disk."""
    folder = tmp_path / "results"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_nothing_is_corrupt(tmp_path, disk):
    study = Study(tmp_path, range(5), cells=(WORK, BIG))
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * 1_000_000)
    code, said = study.run("--jobs", "1")
    assert code == 1
    assert f"toast: The disk of {disk} is full: free some space, and give the same command again." in said
    assert "full disk" in said
    done = study.done()
    assert 1 <= len(done) < 5
    assert_whole(disk, done)
    assert study.left_over() == []

    code, said = study.run("--jobs", "1")  # still full
    assert code == 1
    assert study.done() == done

    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
    code, said = study.run("--jobs", "1")
    assert code == 0, said
    assert len(study.done()) == 5
    assert done.items() <= study.done().items()
    assert_whole(disk, study.done())


def assert_whole(disk, runs):
    for run in runs:
        manifest = json.loads((disk / run / "manifest.json").read_text())
        assert manifest["files"] == ["results.bin", "work.ipynb"]
        assert (disk / run / "results.bin").stat().st_size == 700_000
        assert json.loads((disk / run / "work.ipynb").read_text())["cells"]
