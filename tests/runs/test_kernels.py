"""Kernels of this Python, whatever the machine names."""

import json
import sys

from small_notebook import write_notebook

from toastlib.runs.execute import execute


def test_a_kernel_is_of_this_python_whatever_the_machine_names(tmp_path, monkeypatch):
    other = {"argv": ["/bin/false", "-f", "{connection_file}"], "display_name": "other", "language": "python"}
    (tmp_path / "kernels" / "python3").mkdir(parents=True)
    (tmp_path / "kernels" / "python3" / "kernel.json").write_text(json.dumps(other))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook = write_notebook(tmp_path / "one.ipynb", f"import sys; assert sys.prefix == {sys.prefix!r}")
    execute(notebook, tmp_path / "done.ipynb", {})
