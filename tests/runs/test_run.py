"""Runs executed: one notebook, complete or nothing; many in parallel, where one that fails does not stop the others."""

import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from small_notebook import write_notebook

from toastlib.errors import InputError
from toastlib.runs import run as module
from toastlib.runs.execute import Failure, RunError
from toastlib.runs.run import MAX_RETRIES, SweepOptions, attempt, default_jobs, run_all, run_notebook
from toastlib.runs.store import Run

WRITE = """\
import matplotlib.pyplot as plt, pandas as pd
from toastlib.runs.store import Results

results = Results(results_dir)
results.table(pd.DataFrame({"size": [size], "plan": [plans]}))
results.figure(plt.subplots()[1], "empty")
print(f"written to {results_dir}")
"""


def contents(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*"))


def results(root: Path) -> list[str]:
    """What lies in the results folder, beside the place where runs are made; that one is clean."""
    workshop = root / "results" / ".toast"
    assert {path.name for path in workshop.glob("*/*")} <= {"lock"}
    return sorted(path.name for path in (root / "results").rglob("*") if not path.is_relative_to(workshop))


def sources(notebook: Path) -> str:
    return "\n".join(cell.source for cell in nbformat.read(notebook, 4).cells)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def folder(root) -> Path:
    """The folder of one run."""
    notebook = write_notebook(root / "07_small.ipynb", WRITE, "size + 1")
    return run_notebook(str(notebook), {"size": "7", "plans": "1->2, 3->4"}, root / "results")


def test_a_run_leaves_the_notebook_tables_figures_and_a_manifest(folder):
    assert contents(folder) == [
        *("07_small.ipynb", "empty.pdf", "empty.png", "empty.svg"),
        *("manifest.json", "results.csv", "results.parquet"),
    ]


def test_the_parameters_reach_the_notebook(folder):
    expected = pd.DataFrame({"size": [7], "plan": ["1->2, 3->4"]})
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "results.parquet"), expected, check_dtype=False)
    pd.testing.assert_frame_equal(pd.read_csv(folder / "results.csv"), expected, check_dtype=False)


def test_cells_are_executed_from_1_on(folder):
    cells = nbformat.read(folder / "07_small.ipynb", 4).cells
    assert [cell.execution_count for cell in cells] == [1, 2, 3, 4]
    assert cells[-1].outputs[0].data["text/plain"] == "8"


def test_the_executed_notebook_knows_its_final_folder_only(folder):
    text = (folder / "07_small.ipynb").read_text()
    assert f"written to {folder}" in text
    assert ".part" not in text


def test_the_manifest_tells_how_the_run_came_about(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["notebook"] == "07_small"
    assert manifest["given"] == {"size": 7, "plans": "1->2, 3->4"}
    assert manifest["parameters"]["size"] == 7
    assert manifest["parameters"]["model"] == "vit-mini"
    assert "results_dir" not in manifest["parameters"]
    assert datetime.fromisoformat(manifest["started"]).tzinfo is not None
    assert manifest["seconds"] > 0
    assert set(manifest["versions"]) >= {"python", "toastlib", "torch", "transformers"}
    assert {"commit", "device", "platform"} <= manifest.keys()
    assert manifest["files"] == [name for name in contents(folder) if name != "manifest.json"]


def test_nothing_temporary_is_left_but_an_unlocked_lock(folder):
    assert contents(folder.parent)[:2] == [".toast", folder.name]
    assert contents(folder.parent / ".toast") == [folder.name, "lock"]


def test_a_rerun_replaces_the_folder(tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb", "'first'")
    folder = run_notebook(str(notebook), root=tmp_path / "results")
    (folder / "stale.txt").touch()
    write_notebook(notebook, "'second'")
    assert run_notebook(str(notebook), root=tmp_path / "results") == folder
    assert "'second'" in sources(folder / notebook.name)
    assert results(tmp_path) == ["07_small", "07_small.ipynb", "manifest.json"]


@pytest.mark.parametrize("manifest", [None, "no json", "[]", "{}", '{"notebook": "08_other"}'])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, manifest):
    notebook = write_notebook(tmp_path / "07_small.ipynb", "1 / 0")
    folder = tmp_path / "results" / "07_small"
    folder.mkdir(parents=True)
    (folder / "precious.txt").write_text("mine")
    if manifest is not None:
        (folder / "manifest.json").write_text(manifest)
    before = results(tmp_path)
    with pytest.raises(InputError, match="is not a run of 07_small: name another --results-dir"):
        run_notebook(str(notebook), root=tmp_path / "results")
    assert results(tmp_path) == before


def test_a_failing_cell_is_named_and_the_notebook_is_kept_up_to_it(tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb", WRITE, "1 / 0")
    with pytest.raises(RuntimeError) as failed:
        run_notebook(str(notebook), root=tmp_path / "results")
    kept = tmp_path / "results" / "07_small.failed"
    first, second = str(failed.value).splitlines()
    assert first == "07_small.ipynb failed: cell 4: ZeroDivisionError: division by zero"
    assert second == f"Up to there it lies in {kept}"
    assert results(tmp_path) == ["07_small.failed", "07_small.ipynb", "failure.json"]
    cells = json.loads((kept / "07_small.ipynb").read_text())["cells"]
    assert cells[-1]["outputs"][-1]["ename"] == "ZeroDivisionError"


def test_a_failing_rerun_keeps_the_run_that_is_there(tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb", "'fine'")
    folder = run_notebook(str(notebook), root=tmp_path / "results")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_notebook(notebook, "1 / 0")
    with pytest.raises(RuntimeError):
        run_notebook(str(notebook), root=tmp_path / "results")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_wrong_input_found_in_the_notebook_is_wrong_input(tmp_path):
    cell = "from toastlib.plan import Plan\n\nPlan.parse(plans).check(2)"
    notebook = write_notebook(tmp_path / "07_small.ipynb", cell)
    with pytest.raises(InputError, match=r"^Span 3->4 leaves the model: it has 2 blocks, so the last is 1\.$"):
        run_notebook(str(notebook), {"plans": "3->4"}, tmp_path / "results")
    assert results(tmp_path) == []


def test_a_run_that_another_process_is_making_is_refused(tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb")
    with (
        Run(notebook, {}, tmp_path / "results").locked(),
        pytest.raises(InputError, match=r"^Another process is making .*07_small: wait for it"),
    ):
        run_notebook(str(notebook), root=tmp_path / "results")


def test_wrong_input_is_refused_before_anything_is_written(tmp_path):
    notebook = write_notebook(tmp_path / "07_small.ipynb")
    with pytest.raises(InputError, match="takes a whole number"):
        run_notebook(str(notebook), {"size": "x"}, tmp_path / "results")
    assert not (tmp_path / "results").exists()


BROKEN = Failure("exception", "KeyError", "'x'", 3)
OPTIONS = SweepOptions(owner="me", wait=0)


@pytest.fixture
def run_of(tmp_path):
    """Factory: a run with this size, always of the same notebook and results folder."""
    notebook = write_notebook(tmp_path / "07_small.ipynb", "size")
    return lambda size: Run(notebook, {"size": size}, tmp_path / "results")


@pytest.fixture
def executions(monkeypatch):
    """No kernel: an execution copies the notebook, or raises what is asked for; returns the sizes executed."""
    seen = []

    def execute(notebook, target, parameters, **options):
        seen.append(parameters["size"])
        target.write_text(notebook.read_text())
        if parameters["size"] == 13:
            raise RunError(notebook, BROKEN)
        if parameters["size"] == 28:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "execute", execute)
    return seen


def test_a_run_is_executed_once(run_of, executions):
    first, second = (attempt(run_of(1), OPTIONS) for _ in range(2))
    assert first.failure is None
    assert first.run.folder == second.run.folder
    assert executions == [1]
    attempt(run_of(1), SweepOptions(force=True))
    assert executions == [1, 1]


def test_a_failure_is_kept_until_the_run_succeeds(run_of, executions, monkeypatch):
    run = run_of(13)
    assert attempt(run, OPTIONS).failure == BROKEN
    record = run.failure_record()
    assert record["kind"] == "exception"
    assert record["given"] == {"size": 13}
    assert record["parameters"]["rate"] == 0.5
    assert (run.failed / "07_small.ipynb").is_file()
    assert run.staging_dirs() == []
    monkeypatch.setattr(module, "execute", lambda notebook, target, *_, **__: target.write_text(notebook.read_text()))
    assert attempt(run, OPTIONS).failure is None
    assert not run.failed.exists()


def test_a_full_disk_is_a_failure_of_its_own_kind(run_of, executions):
    assert attempt(run_of(28), OPTIONS).failure.kind == "full disk"


def test_a_run_that_another_process_executes_is_left_alone(run_of, executions):
    with run_of(1).locked():
        outcome = attempt(run_of(1), OPTIONS)
    assert outcome.busy
    assert outcome.failure is None
    assert executions == []


def test_a_folder_of_something_else_is_a_failure(run_of, executions):
    run_of(1).folder.mkdir(parents=True)
    assert "is not a run of 07_small" in attempt(run_of(1), OPTIONS).failure.message
    assert executions == []


def lose_workers(run, owner):
    """Leave what killed workers leave, as often as fails a run."""
    with run.locked():
        for _ in range(MAX_RETRIES):
            run.new_staging_dir(owner)


def test_a_run_that_keeps_losing_its_worker_fails_and_can_be_tried_again(run_of, executions):
    lose_workers(run_of(1), OPTIONS.owner)
    assert attempt(run_of(1), OPTIONS).failure.kind == "lost worker"
    assert executions == []
    assert run_of(1).staging_dirs() == []
    assert attempt(run_of(1), OPTIONS).failure is None


def test_workers_that_other_sweeps_lost_do_not_count(run_of, executions):
    lose_workers(run_of(1), "earlier")
    assert attempt(run_of(1), OPTIONS).failure is None
    assert run_of(1).staging_dirs() == []


@pytest.mark.slow
def test_many_runs_in_parallel_have_processes_of_their_own(tmp_path):
    cells = ("import os\n\nopen(results_dir + '/pid', 'w').write(str(os.getppid()))", "1 / (size - 2)")
    notebook = write_notebook(tmp_path / "07_small.ipynb", *cells)
    runs = [Run(notebook, {"size": size}, tmp_path / "results") for size in (1, 2, 3)]
    outcomes = {outcome.run.overrides["size"]: outcome for outcome in run_all(runs, SweepOptions(jobs=2))}
    assert outcomes.keys() == {1, 2, 3}
    assert str(outcomes[2].failure) == "cell 4: ZeroDivisionError: division by zero"
    workers = {int((outcomes[size].run.folder / "pid").read_text()) for size in (1, 3)}
    assert os.getpid() not in workers
    manifest = json.loads((outcomes[1].run.folder / "manifest.json").read_text())
    assert manifest["given"] == {"size": 1}
    assert list((tmp_path / "results").glob(".toast/*/*.part")) == []


def test_one_job_has_a_process_of_its_own_too(tmp_path):
    cell = "import os\n\nassert os.getppid() != size, 'the driver itself'"
    run = Run(write_notebook(tmp_path / "07_small.ipynb", cell), {"size": os.getpid()}, tmp_path / "results")
    (outcome,) = run_all([run], SweepOptions(jobs=1))
    assert outcome.failure is None


def test_a_worker_ends_with_its_driver():
    code = "from toastlib.runs.cluster import end_with; import time; end_with(1); time.sleep(60)"  # 1 is not its parent
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 1


def test_an_interrupted_sweep_removes_what_it_had_begun(run_of, executions, monkeypatch):
    run = run_of(1)

    def interrupted(_, options, *rest):
        with run.locked():
            run.new_staging_dir(options.owner)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(module, "_repeat_lost", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(run_all([run], SweepOptions(jobs=2)))
    assert run.staging_dirs() == []


@pytest.mark.parametrize(("gpus", "cores", "jobs"), [(0, 1, 1), (0, 64, 2), (4, 2, 4)])
def test_there_is_a_job_for_each_gpu(monkeypatch, gpus, cores, jobs):
    monkeypatch.setattr(module, "gpu_names", lambda: {str(index): "H200" for index in range(gpus)})
    monkeypatch.setattr(module.os, "cpu_count", lambda: cores)
    assert default_jobs() == jobs
