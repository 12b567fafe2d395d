"""Grids of notebook runs: a YAML file in, checked runs out, every mistake named with its line."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from toastlib.data.catalog import ROOT
from toastlib.errors import InputError, unknown
from toastlib.runs.batch import find_notebook
from toastlib.runs.folders import run_folder
from toastlib.runs.parameters import check_parameters, notebook_parameters
from toastlib.runs.runs import Run

GRIDS = ROOT / "grids"
KEYS = ("notebook", "parameters", "include", "exclude")


def read_grid(path: str | Path) -> list[Run]:
    """The runs of a grid file.

    The file holds one entry or a list of them, each with the keys

    ``notebook``
        Name, number or path.
    ``parameters``
        Name -> value. A list gives one run for each of its members, and several lists every combination; where the
        parameter is itself a list, a list of lists does.
    ``include``
        More runs: a list of mappings like ``parameters``, each taking from there what it does not name.
    ``exclude``
        A list of mappings; combinations that agree with one of them are left out.

    Raises
    ------
    InputError
        If the file is not readable as such, a key, notebook, parameter or value is wrong, or two runs are the same;
        the message names the line.
    """
    path = Path(path)
    lines: dict[Path, int] = {}
    runs = []
    for entry in _entries(path):
        for line, run in _expand(path, entry):
            folder = run_folder(run.notebook, run.given, Path())
            if folder in lines:
                raise InputError(f"{path.name}, line {line}: the same run is asked for on line {lines[folder]} too.")
            lines[folder] = line
            runs.append(run)
    if not runs:
        raise InputError(f"{path.name} asks for no run.")
    return runs


def paper_grid(table: str | None = None) -> list[Run]:
    """The runs of one of the paper's tables, or of all of them.

    Raises
    ------
    InputError
        If the paper has no accuracies in a table of that number.
    """
    files = {path.stem.removeprefix("paper-table-"): path for path in GRIDS.glob("paper-table-*.yaml")}
    tables = sorted(files, key=int)
    if table is not None and table not in files:
        raise unknown("table", table, tables)
    return [run for name in ([table] if table else tables) for run in read_grid(files[name])]


@dataclass(frozen=True)
class _Mapping:
    """A mapping of the file, and where it and its keys stand."""

    values: dict[str, Any]
    line: int
    lines: dict[str, int]


def _entries(path: Path) -> Iterator[_Mapping]:
    try:
        root = yaml.compose(path.read_bytes(), yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"The grid {str(path)!r} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise InputError(f"{path.name}{where}: not YAML ({problem}).") from None
    nodes = root.value if isinstance(root, yaml.SequenceNode) else [root] if root else []
    for node in nodes:
        entry = _mapping(path, node)
        for key in entry.values:
            if key not in KEYS:
                raise _at(path, entry.lines[key], unknown("key", key, KEYS))
        if "notebook" not in entry.values:
            raise InputError(f"{path.name}, line {entry.line}: a run needs a 'notebook', for example '02'.")
        yield entry


def _expand(path: Path, entry: _Mapping) -> Iterator[tuple[int, Run]]:
    """The runs of an entry, each with the line that asks for it."""
    notebook = _notebook(path, entry)
    node = entry.values.get("parameters")
    base = _mapping(path, node) if node else _Mapping({}, entry.line, {})
    excluded = [_values(path, notebook, one) for one in _members(path, entry, "exclude")]
    for given in _combinations(path, notebook, base):
        if not any(all(given.get(k) in values for k, values in mapping.items()) for mapping in excluded):
            yield entry.line, Run(notebook, given)
    for extra in _members(path, entry, "include"):
        merged = _Mapping(base.values | extra.values, extra.line, base.lines | extra.lines)
        for given in _combinations(path, notebook, merged):
            yield extra.line, Run(notebook, given)


def _combinations(path: Path, notebook: Path, mapping: _Mapping) -> Iterator[dict[str, Any]]:
    values = _values(path, notebook, mapping)
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _notebook(path: Path, entry: _Mapping) -> Path:
    line, node = entry.lines["notebook"], entry.values["notebook"]
    if not isinstance(node, yaml.ScalarNode):
        raise InputError(f"{path.name}, line {line}: 'notebook' takes a name, a number or a path.")
    try:
        notebook = find_notebook(node.value).resolve()
        notebook_parameters(notebook)
    except InputError as error:
        raise _at(path, line, error) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path.name}, line {line}: {node.value!r} cannot be read as a notebook.") from error
    return notebook


def _values(path: Path, notebook: Path, mapping: _Mapping) -> dict[str, list[Any]]:
    """Parameter -> the checked values that it takes in turn."""
    takes, values = notebook_parameters(notebook), {}
    for name, node in mapping.values.items():
        if name == "results_dir":
            raise InputError(f"{path.name}, line {mapping.lines[name]}: results_dir is for the command: --results-dir.")
        is_axis = isinstance(node, yaml.SequenceNode)
        if is_axis and name in takes and isinstance(takes[name].default, list):
            is_axis = bool(node.value) and all(isinstance(member, yaml.SequenceNode) for member in node.value)
        members = node.value if is_axis else [node]
        values[name] = [_value(path, notebook, name, member, mapping.lines[name]) for member in members]
    return values


def _value(path: Path, notebook: Path, name: str, node: yaml.Node, line: int) -> Any:
    line = max(line, node.start_mark.line + 1)  # an alias stands later than what it names
    try:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
        return check_parameters(notebook, {name: value})[name]
    except InputError as error:
        raise _at(path, line, error) from None
    except yaml.YAMLError as error:
        raise InputError(f"{path.name}, line {line}: {getattr(error, 'problem', error)}.") from None


def _members(path: Path, entry: _Mapping, key: str) -> list[_Mapping]:
    node = entry.values.get(key)
    if node is None:
        return []
    if not isinstance(node, yaml.SequenceNode):
        raise InputError(f"{path.name}, line {entry.lines[key]}: {key!r} takes a list of mappings.")
    return [_mapping(path, member) for member in node.value]


def _mapping(path: Path, node: yaml.Node) -> _Mapping:
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{path.name}, line {line}: a mapping of names to values is needed here.")
    values, lines = {}, {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"{path.name}, line {key.start_mark.line + 1}: a name is needed here.")
        if key.value in values:
            raise InputError(f"{path.name}, line {key.start_mark.line + 1}: {key.value!r} stands here twice.")
        values[key.value], lines[key.value] = value, key.start_mark.line + 1
    return _Mapping(values, line, lines)


def _at(path: Path, line: int, error: InputError) -> InputError:
    return InputError(f"{path.name}, line {line}: {error}")
