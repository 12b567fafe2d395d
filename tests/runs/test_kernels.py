"""Kernels forked from a process with the packages imported: as fresh as any kernel, and sooner there."""

import json
import os
import sys

import pytest
from small_notebook import write_notebook

from toastlib.runs.execute import RunError, execute
from toastlib.runs.kernels import CAN_FORK

pytestmark = pytest.mark.skipif(not CAN_FORK, reason="kernels are forked on Linux alone")
SEES = """\
import os, sys
assert ("torch" in sys.modules) == FORKED, "imported already"
assert os.environ["TOAST_TEST"] == "here" and os.getcwd() == CWD
assert "left" not in globals() and not hasattr(sys.modules.get("torch"), "left")
import torch
torch.left = left = 1
"""


@pytest.mark.parametrize("forked", [True, False])
def test_each_kernel_is_fresh_and_sees_this_environment(tmp_path, monkeypatch, forked):
    monkeypatch.setenv("TOAST_TEST", "here")
    notebook = write_notebook(tmp_path / "one.ipynb", f"FORKED, CWD = {forked}, {os.getcwd()!r}", SEES)
    for _ in range(2):
        execute(notebook, tmp_path / "done.ipynb", {}, one_of_many=forked)


def test_a_forked_kernel_that_is_killed_is_told_and_the_next_one_starts(tmp_path):
    dying = write_notebook(tmp_path / "dying.ipynb", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(RunError, match="dead kernel"):
        execute(dying, tmp_path / "done.ipynb", {}, one_of_many=True)
    execute(write_notebook(tmp_path / "one.ipynb", "1"), tmp_path / "done.ipynb", {}, one_of_many=True)


def test_a_forked_kernel_ends_with_its_notebook(tmp_path):
    notebook = write_notebook(
        tmp_path / "one.ipynb", f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))"
    )
    execute(notebook, tmp_path / "done.ipynb", {}, one_of_many=True)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("forked", [True, False])
def test_a_kernel_is_of_this_python_whatever_the_machine_names(tmp_path, monkeypatch, forked):
    other = {"argv": ["/bin/false", "-f", "{connection_file}"], "display_name": "other", "language": "python"}
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(other))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook = write_notebook(tmp_path / "one.ipynb", f"import sys; assert sys.prefix == {sys.prefix!r}")
    execute(notebook, tmp_path / "done.ipynb", {}, one_of_many=forked)
