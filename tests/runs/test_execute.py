"""One notebook through papermill: every way to fail has a name and a cell, and a bad start is tried again."""

import errno
import json

import papermill
import pytest
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from small_notebook import write_notebook
from zmq import ZMQError

from toastlib.runs import execute as module
from toastlib.runs.execute import MAX_STARTS, Failure, RunError, execute

TAKEN = ZMQError(errno.EADDRINUSE)
NEVER_ANSWERED = RuntimeError("Kernel died before replying to kernel_info")


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "07_small.ipynb", "size", "size + 1")


@pytest.fixture
def papermill_that(monkeypatch, tmp_path):
    """Factory: papermill gets as far as `cells` code cells and raises these errors, one a call; returns the calls."""

    def replace(*errors, cells=0):
        calls, errors = [], list(errors)

        def fake(source, target, **options):
            calls.append(options)
            executed = json.loads((tmp_path / "07_small.ipynb").read_text())
            for cell in executed["cells"][:cells]:
                cell["metadata"]["papermill"] = {"start_time": "now", "status": "completed"}
            with open(target, "w") as stream:
                json.dump(executed, stream)
            if errors:
                raise errors.pop(0)

        monkeypatch.setattr(papermill, "execute_notebook", fake)
        return calls

    return replace


@pytest.mark.parametrize("error", [TAKEN, NEVER_ANSWERED, DeadKernelError("Kernel died")])
def test_a_kernel_that_does_not_start_is_started_again(notebook, tmp_path, papermill_that, error):
    calls = papermill_that(error, error)
    execute(notebook, tmp_path / "out.ipynb", {})
    assert len(calls) == MAX_STARTS == 3


def test_after_three_bad_starts_it_is_a_failure(notebook, tmp_path, papermill_that):
    calls = papermill_that(*[TAKEN] * 9)
    with pytest.raises(RunError, match=r"^07_small\.ipynb failed: ZMQError: Address already in use$"):
        execute(notebook, tmp_path / "out.ipynb", {})
    assert len(calls) == MAX_STARTS


def test_a_kernel_that_dies_in_a_cell_is_not_started_again(notebook, tmp_path, papermill_that):
    calls = papermill_that(DeadKernelError("Kernel died"), cells=2)
    with pytest.raises(RunError) as error:
        execute(notebook, tmp_path / "out.ipynb", {})
    assert error.value.failure == Failure("dead kernel", "DeadKernelError", "it was killed, or crashed", 2)
    assert len(calls) == 1


def test_a_kill_for_want_of_memory_is_told(notebook, tmp_path, papermill_that, monkeypatch):
    papermill_that(DeadKernelError("Kernel died"), cells=3)
    kills = iter([4, 5])
    monkeypatch.setattr(module, "_memory_kills", lambda: next(kills))
    with pytest.raises(RunError, match="cell 3: dead kernel: killed because memory ran out"):
        execute(notebook, tmp_path / "out.ipynb", {})


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (CellTimeoutError("Cell contents: size"), "cell 2: time-out: not done after 60 s"),
        (OSError(errno.ENOSPC, "No space"), "cell 2: full disk: the disk of the results is full"),
        (
            papermill.PapermillExecutionError(2, 2, "size", "OSError", "[Errno 28] No space left", []),
            "cell 2: full disk: [Errno 28] No space left",
        ),
        (
            papermill.PapermillExecutionError(2, 2, "size", "KeyError", "'x'\nmore", []),
            "cell 2: KeyError: 'x'",
        ),
        (ValueError("odd"), "cell 2: ValueError: odd"),
    ],
)
def test_every_failure_is_one_line_with_its_cell(notebook, tmp_path, papermill_that, error, says):
    papermill_that(error, cells=2)
    with pytest.raises(RunError) as caught:
        execute(notebook, tmp_path / "out.ipynb", {}, seconds=60)
    assert str(caught.value.failure) == says


def test_the_time_is_for_the_whole_run(notebook, tmp_path, papermill_that, monkeypatch):
    calls = papermill_that()
    now = iter([100.0, 101.0, 109.0, 130.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    execute(notebook, tmp_path / "out.ipynb", {}, seconds=10)
    assert calls[0]["start_timeout"] == 9
    assert calls[0]["timeout_func"](None) == 1
    assert 0 < calls[0]["timeout_func"](None) < 1  # late is not without limit


def test_a_cell_that_raises_is_kept_with_its_number(notebook, tmp_path):
    write_notebook(notebook, "'fine'", "1 / 0", "'never'")
    with pytest.raises(RunError, match=r"cell 4: ZeroDivisionError: division by zero$"):
        execute(notebook, tmp_path / "out.ipynb", {"size": 3})
    counts = [cell.get("execution_count") for cell in json.loads((tmp_path / "out.ipynb").read_text())["cells"]]
    assert 4 in counts
    assert counts[-1] is None
