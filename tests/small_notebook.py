"""Notebooks of a few cells, for the tests of what runs notebooks."""

from pathlib import Path

import nbformat

PARAMETERS = """\
model = "vit-mini"  # which encoder
dataset = "digits"  # which images
datasets = ["digits", "mnist"]  # several
plans = "1->2"  # plans, separated by commas
translators = ["identity", "linear"]
seeds = [0, 1]
size = 4  # how many
rate = 0.5  # how fast
quick = False
device = "auto"
results_dir = ""
"""


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> Path:
    """Write a notebook with a parameters cell and these code cells."""
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[tagged, *map(nbformat.v4.new_code_cell, cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path
