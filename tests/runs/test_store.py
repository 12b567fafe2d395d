"""Where runs lie: names made of content, one process at a time, and whatever a killed process leaves is harmless."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from small_notebook import write_notebook

from toastlib.errors import InputError
from toastlib.runs.parameters import code_hash
from toastlib.runs.store import Busy, Results, Run

RECORD = {"kind": "exception", "exception": "ZeroDivisionError", "message": "division by zero", "cell": 3}


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write_notebook(tmp_path / "07_small.ipynb", "size")


@pytest.fixture
def run(notebook, tmp_path) -> Run:
    return Run(notebook, {"size": 9}, tmp_path / "results")


def folder_of(notebook: Path, overrides: dict) -> Path:
    return Run(notebook, overrides, Path()).folder


def make(run: Run, text: str = "whole") -> Path:
    """A run as it is made, without executing anything."""
    staging_dir = run.new_staging_dir("me")
    (staging_dir / run.notebook.name).write_text(f"{text} in {staging_dir}")
    (staging_dir / "manifest.json").write_text(f'{{"notebook": "{run.notebook.stem}", "code": "x"}}')
    return staging_dir


def test_the_name_is_the_notebooks_and_a_hash_of_what_differs_from_its_own(notebook):
    own, small, large = (folder_of(notebook, given) for given in ({}, {"size": 1}, {"size": 2}))
    assert own == Path("07_small")
    assert small.name.startswith("07_small-")
    assert len({own, small, large}) == 3
    assert folder_of(notebook, {"size": 4}) == own  # 4 is the notebook's own
    assert folder_of(notebook, {"size": 1, "rate": 0.5}) == small


def test_revisions_of_one_model_are_different_runs(notebook):
    names = ("owner/model", "owner/model@main", "owner/model@v1")
    assert len({folder_of(notebook, {"model": name}) for name in names}) == 3


def test_the_order_of_parameters_does_not_matter(notebook):
    given = {"size": 1, "plans": "2->3"}
    assert folder_of(notebook, given) == folder_of(notebook, dict(reversed(given.items())))


def test_other_code_is_another_run_but_other_text_is_not(notebook, tmp_path):
    before = folder_of(notebook, {"size": 1})
    write_notebook(tmp_path / "other" / notebook.name, "size")
    assert folder_of(tmp_path / "other" / notebook.name, {"size": 1}) == before
    write_notebook(notebook, "size + 1")
    assert folder_of(notebook, {"size": 1}) != before


def test_a_run_is_done_when_its_folder_holds_the_present_code(notebook, tmp_path):
    run = Run(notebook, {}, tmp_path)
    assert not run.is_done()
    run.folder.mkdir()
    run.write_manifest(run.folder, 0)
    assert run.is_done()
    write_notebook(notebook, "size + 1")
    assert not Run(notebook, {}, tmp_path).is_done()


def test_only_one_process_has_the_lock_and_a_killed_one_gives_it_back(run):
    code = (
        "import sys, time; from pathlib import Path; from toastlib.runs.store import Run\n"
        "with Run(Path(sys.argv[1]), {'size': 9}, Path(sys.argv[2])).locked(): print('mine', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(run.notebook), str(run.folder.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(Busy, match="Another process is making"), run.locked(0.1):
            pass
        assert not run.is_running()  # nothing is there yet
        staging_dir = run.new_staging_dir()
        assert run.is_running()
        other.kill()
    assert staging_dir in run.staging_dirs()
    assert not run.is_running()
    with run.locked(0):
        pass


def test_a_whole_run_takes_the_place_of_an_older_one_and_of_a_failure(run):
    with run.locked():
        run.publish(make(run, "first"))
        run.keep_failure(make(run), RECORD)
        run.publish(make(run, "second"))
    assert (run.folder / run.notebook.name).read_text() == f"second in {run.folder}"
    assert not run.failed.exists()
    assert [path.name for path in run.staging.iterdir()] == ["lock"]


def test_what_dead_processes_left_is_cleared_away(run):
    with run.locked():
        theirs, mine = make(run), run.new_staging_dir("mine")
        run.tidy(keep="mine")
    assert not theirs.exists()
    assert run.staging_dirs() == [mine]


def test_a_kill_between_the_two_renames_loses_nothing(run):
    with run.locked():
        run.publish(make(run, "first"))
        run.folder.rename(run.staging / "me.0.old")
        assert not run.folder.exists()
        run.tidy()
    assert (run.folder / run.notebook.name).read_text().startswith("first")


def test_of_a_failure_stay_the_notebook_and_what_happened(run):
    with run.locked():
        staging_dir = make(run)
        (staging_dir / "results.csv").touch()
        (staging_dir / "folder").mkdir()
        run.keep_failure(staging_dir, {"code": code_hash(run.notebook)} | RECORD)
    assert sorted(path.name for path in run.failed.iterdir()) == ["07_small.ipynb", "failure.json"]
    assert run.failure_record() == {"code": code_hash(run.notebook)} | RECORD
    assert str(run.failed) in (run.failed / "07_small.ipynb").read_text()
    write_notebook(run.notebook, "size + 1")
    assert run.failure_record() == {}


def test_a_folder_of_something_else_is_refused(run):
    run.folder.mkdir(parents=True)
    with pytest.raises(InputError, match="is not a run of 07_small: name another --results-dir"):
        run.check_folder()


def test_runs_whose_names_begin_alike_do_not_touch_each_other(tmp_path):
    short, long = (
        Run(write_notebook(tmp_path / f"{name}.ipynb"), {}, tmp_path / "results") for name in ("my", "my.alone")
    )
    with short.locked(), long.locked():
        staging_dir = long.new_staging_dir("me")
        short.tidy()
    assert staging_dir.exists()


def test_results_without_a_folder_are_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = Results("")
    results.table(pd.DataFrame({"a": [1]}))
    assert results.folder is None
    assert list(tmp_path.iterdir()) == []


def test_results_take_a_name_and_several_axes(tmp_path):
    import matplotlib.pyplot as plt

    results = Results(str(tmp_path / "new"))
    results.table(pd.DataFrame({"a": [1]}), "beside")
    results.figure(plt.subplots(1, 2)[1], "panels")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "beside.csv",
        "beside.parquet",
        "panels.pdf",
        "panels.png",
        "panels.svg",
    ]
