"""Where runs lie: names made of content, one process at a time, and whatever a killed process leaves is harmless."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_notebook import write_notebook

from toastlib.errors import InputError
from toastlib.runs.executing import Failure
from toastlib.runs.folders import Busy, RunFolder, code_hash, run_folder

TOLD = Failure("exception", "ZeroDivisionError", "division by zero", 3)


@pytest.fixture
def notebook(tmp_path) -> Path:
    return write_notebook(tmp_path / "07_small.ipynb", "size")


@pytest.fixture
def place(notebook, tmp_path) -> RunFolder:
    return RunFolder(notebook, {"size": 9}, tmp_path / "results")


def make(place: RunFolder, text: str = "whole") -> Path:
    """A run as it is made, without executing anything."""
    part = place.make_part("me")
    (part / place.notebook.name).write_text(f"{text} in {part}")
    (part / "manifest.json").write_text(f'{{"notebook": "{place.notebook.stem}", "code": "x"}}')
    return part


def test_the_name_is_the_notebooks_and_a_hash_of_what_differs_from_its_own(notebook):
    own, small, large = (run_folder(notebook, given, Path()) for given in ({}, {"size": 1}, {"size": 2}))
    assert own == Path("07_small")
    assert small.name.startswith("07_small-")
    assert len({own, small, large}) == 3
    assert run_folder(notebook, {"size": 4}, Path()) == own  # 4 is the notebook's own
    assert run_folder(notebook, {"size": 1, "rate": 0.5}, Path()) == small


def test_the_order_of_parameters_does_not_matter(notebook):
    given = {"size": 1, "plans": "2->3"}
    assert run_folder(notebook, given, Path()) == run_folder(notebook, dict(reversed(given.items())), Path())


def test_other_code_is_another_run_but_other_text_is_not(notebook, tmp_path):
    before = run_folder(notebook, {"size": 1}, Path())
    write_notebook(tmp_path / "other" / notebook.name, "size")
    assert run_folder(tmp_path / "other" / notebook.name, {"size": 1}, Path()) == before
    write_notebook(notebook, "size + 1")
    assert run_folder(notebook, {"size": 1}, Path()) != before


def test_a_run_is_done_when_its_folder_holds_the_present_code(notebook, tmp_path):
    from toastlib.runs.manifests import write_manifest

    place = RunFolder(notebook, {}, tmp_path)
    assert not place.is_done()
    place.folder.mkdir()
    write_manifest(place.folder, notebook, {}, 0)
    assert place.is_done()
    write_notebook(notebook, "size + 1")
    assert not RunFolder(notebook, {}, tmp_path).is_done()


def test_only_one_process_has_the_lock_and_a_killed_one_gives_it_back(place):
    code = (
        "import sys, time; from pathlib import Path; from toastlib.runs.folders import RunFolder\n"
        "with RunFolder(Path(sys.argv[1]), {'size': 9}, Path(sys.argv[2])).locked(): print('mine', flush=True); input()"
    )
    command = [sys.executable, "-c", code, str(place.notebook), str(place.folder.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(Busy, match="Another process is making"), place.locked(0.1):
            pass
        assert not place.is_being_made()  # nothing is there yet
        part = place.make_part()
        assert place.is_being_made()
        other.kill()
    assert part in place.parts()
    assert not place.is_being_made()
    with place.locked(0):
        pass


def test_a_whole_run_takes_the_place_of_an_older_one_and_of_a_failure(place):
    with place.locked():
        place.put_in_place(make(place, "first"))
        place.keep_failure(make(place), TOLD, {})
        place.put_in_place(make(place, "second"))
    assert (place.folder / place.notebook.name).read_text() == f"second in {place.folder}"
    assert not place.failed.exists()
    assert [path.name for path in place.workshop.iterdir()] == ["lock"]


def test_what_dead_processes_left_is_cleared_away(place):
    with place.locked():
        theirs, mine = make(place), place.make_part("mine")
        place.tidy(but="mine")
    assert not theirs.exists()
    assert place.parts() == [mine]


def test_a_kill_between_the_two_renames_loses_nothing(place):
    with place.locked():
        place.put_in_place(make(place, "first"))
        place.folder.rename(place.workshop / "me.0.old")
        assert not place.folder.exists()
        place.tidy()
    assert (place.folder / place.notebook.name).read_text().startswith("first")


def test_of_a_failure_stay_the_notebook_and_what_happened(place):
    with place.locked():
        part = make(place)
        (part / "results.csv").touch()
        (part / "folder").mkdir()
        place.keep_failure(part, TOLD, {"code": code_hash(place.notebook)})
    assert sorted(path.name for path in place.failed.iterdir()) == ["07_small.ipynb", "failure.json"]
    assert place.failure() == {"code": code_hash(place.notebook)} | TOLD.as_dict()
    assert str(place.failed) in (place.failed / "07_small.ipynb").read_text()
    write_notebook(place.notebook, "size + 1")
    assert place.failure() == {}


def test_a_folder_of_something_else_is_refused(place):
    place.folder.mkdir(parents=True)
    with pytest.raises(InputError, match="is not a run of 07_small: name another --results-dir"):
        place.check()


def test_runs_whose_names_begin_alike_do_not_touch_each_other(tmp_path):
    short, long = (
        RunFolder(write_notebook(tmp_path / f"{name}.ipynb"), {}, tmp_path / "results") for name in ("my", "my.alone")
    )
    with short.locked(), long.locked():
        part = long.make_part("me")
        short.tidy()
    assert part.exists()
