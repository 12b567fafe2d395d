"""Many runs: one that fails is told and the others go on; what is done or being made elsewhere is left alone."""

import json
import os
import subprocess
import sys

import pytest
from small_notebook import write_notebook

from toastlib.runs import batch, runs
from toastlib.runs.executing import Failure, RunError
from toastlib.runs.folders import RunFolder
from toastlib.runs.runs import LIVES, Orders, Run, attempt, run_all

BROKEN = Failure("exception", "KeyError", "'x'", 3)


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "07_small.ipynb", "size")


@pytest.fixture
def orders(tmp_path):
    return Orders(tmp_path / "results", maker="me", wait=0)


@pytest.fixture
def executions(monkeypatch):
    """No kernel: an execution copies the notebook, or raises what is asked for; returns the sizes executed."""
    seen = []

    def execute(notebook, target, parameters, seconds, progress):
        seen.append(parameters["size"])
        target.write_text(notebook.read_text())
        if parameters["size"] == 13:
            raise RunError(notebook, BROKEN)
        if parameters["size"] == 28:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(batch, "execute", execute)
    return seen


def test_a_run_is_made_once(notebook, orders, executions):
    first, second = (attempt(Run(notebook, {"size": 1}), orders) for _ in range(2))
    assert first.failure is None
    assert first.folder == second.folder
    assert executions == [1]
    attempt(Run(notebook, {"size": 1}), Orders(orders.root, again=True))
    assert executions == [1, 1]


def test_a_failure_is_kept_until_the_run_succeeds(notebook, orders, executions, monkeypatch):
    run = Run(notebook, {"size": 13})
    place = RunFolder(notebook, run.given, orders.root)
    assert attempt(run, orders).failure == BROKEN
    told = place.failure()
    assert told["kind"] == "exception"
    assert told["given"] == {"size": 13}
    assert told["parameters"]["rate"] == 0.5
    assert (place.failed / "07_small.ipynb").is_file()
    assert place.parts() == []
    monkeypatch.setattr(batch, "execute", lambda notebook, target, *_: target.write_text(notebook.read_text()))
    assert attempt(run, orders).failure is None
    assert not place.failed.exists()


def test_a_full_disk_is_a_failure_of_its_own_kind(notebook, orders, executions):
    outcome = attempt(Run(notebook, {"size": 28}), orders)
    assert outcome.failure.kind == "full disk"


def test_a_run_that_is_being_made_is_left_alone(notebook, orders, executions):
    with RunFolder(notebook, {"size": 1}, orders.root).locked():
        outcome = attempt(Run(notebook, {"size": 1}), orders)
    assert outcome.busy
    assert outcome.failure is None
    assert executions == []


def test_a_folder_of_something_else_is_a_failure(notebook, orders, executions):
    RunFolder(notebook, {"size": 1}, orders.root).folder.mkdir(parents=True)
    outcome = attempt(Run(notebook, {"size": 1}), orders)
    assert "is not a run of 07_small" in outcome.failure.message
    assert executions == []


def test_a_run_that_keeps_losing_its_worker_is_given_up_and_can_be_tried_again(notebook, orders, executions):
    place = RunFolder(notebook, {"size": 1}, orders.root)
    with place.locked():
        for _ in range(LIVES):
            place.make_part(orders.maker)  # as a killed worker leaves them
    outcome = attempt(Run(notebook, {"size": 1}), orders)
    assert outcome.failure.kind == "lost worker"
    assert executions == []
    assert place.parts() == []
    assert attempt(Run(notebook, {"size": 1}), orders).failure is None


def test_what_other_sweeps_lost_does_not_count(notebook, orders, executions):
    place = RunFolder(notebook, {"size": 1}, orders.root)
    with place.locked():
        for _ in range(LIVES):
            place.make_part("earlier")
    assert attempt(Run(notebook, {"size": 1}), orders).failure is None
    assert place.parts() == []


def test_many_runs_at_once_in_processes_of_their_own(tmp_path):
    cells = ("import os\n\nopen(results_dir + '/pid', 'w').write(str(os.getppid()))", "1 / (size - 2)")
    notebook = write_notebook(tmp_path / "07_small.ipynb", *cells)
    many = [Run(notebook, {"size": size}) for size in (1, 2, 3)]
    outcomes = {outcome.run.given["size"]: outcome for outcome in run_all(many, Orders(tmp_path / "results"), jobs=2)}
    assert outcomes.keys() == {1, 2, 3}
    assert str(outcomes[2].failure) == "cell 4: ZeroDivisionError: division by zero"
    workers = {int((outcomes[size].folder / "pid").read_text()) for size in (1, 3)}
    assert os.getpid() not in workers
    manifest = json.loads((outcomes[1].folder / "manifest.json").read_text())
    assert manifest["given"] == {"size": 1}
    assert list((tmp_path / "results").glob(".toast/*/*.part")) == []


def test_one_job_has_a_process_of_its_own_too(tmp_path):
    notebook = write_notebook(
        tmp_path / "07_small.ipynb", "import os\n\nassert os.getppid() != size, 'the driver itself'"
    )
    (outcome,) = run_all([Run(notebook, {"size": os.getpid()})], Orders(tmp_path / "results"), jobs=1)
    assert outcome.failure is None


def test_a_worker_ends_with_its_driver():
    code = "from toastlib.runs.cluster import end_with; import time; end_with(1); time.sleep(60)"  # 1 is not its parent
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 1


def test_an_interrupted_sweep_clears_up_what_it_had_begun(notebook, orders, executions, monkeypatch):
    run = Run(notebook, {"size": 1})
    place = RunFolder(notebook, run.given, orders.root)

    def interrupted(_, orders, *rest):
        with place.locked():
            place.make_part(orders.maker)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(runs, "_until_none_is_lost", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run_all([run], orders, jobs=2))
    assert place.parts() == []


@pytest.mark.parametrize(("gpus", "cores", "jobs"), [(0, 1, 1), (0, 64, 2), (4, 2, 4)])
def test_there_is_a_job_for_each_gpu(monkeypatch, gpus, cores, jobs):
    monkeypatch.setattr(runs, "gpu_names", lambda: {str(index): "H200" for index in range(gpus)})
    monkeypatch.setattr(runs.os, "cpu_count", lambda: cores)
    assert runs.default_jobs() == jobs
