"""Grids of notebook runs: a YAML file in, checked runs out, every mistake named with its line."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from toastlib.batch import find_notebook
from toastlib.catalog import ROOT
from toastlib.errors import InputError, unknown
from toastlib.parameters import check_parameters, notebook_parameters

GRIDS = ROOT / "grids"
KEYS = ("notebook", "parameters", "include", "exclude")


@dataclass(frozen=True)
class Run:
    """One notebook with checked parameters."""

    notebook: Path
    given: dict[str, Any]


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
    lines: dict[tuple[Path, str], int] = {}
    runs = []
    for entry in _entries(path):
        for run in _expand(path, entry):
            key = (run.notebook, repr(sorted(run.given.items())))
            if key in lines:
                raise InputError(f"{path.name}, line {entry.line}: the same run is asked for on line {lines[key]} too.")
            lines[key] = entry.line
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
        with path.open() as stream:
            root = yaml.compose(stream, yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"The grid {str(path)!r} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path.name}{where}: not YAML ({getattr(error, 'problem', error)}).") from None
    nodes = root.value if isinstance(root, yaml.SequenceNode) else [root] if root else []
    for node in nodes:
        entry = _mapping(path, node)
        for key in entry.values:
            if key not in KEYS:
                raise _at(path, entry.lines[key], unknown("key", key, KEYS))
        if "notebook" not in entry.values:
            raise InputError(f"{path.name}, line {entry.line}: a run needs a 'notebook', for example '02'.")
        yield entry


def _expand(path: Path, entry: _Mapping) -> Iterator[Run]:
    try:
        notebook = find_notebook(str(entry.values["notebook"].value))
    except InputError as error:
        raise _at(path, entry.lines["notebook"], error) from None
    node = entry.values.get("parameters")
    base = _mapping(path, node) if node else _Mapping({}, entry.line, {})
    excluded = [_values(path, notebook, one) for one in _members(path, entry, "exclude")]
    for given in _combinations(path, notebook, base):
        if not any(all(given.get(k) in values for k, values in mapping.items()) for mapping in excluded):
            yield Run(notebook, given)
    for extra in _members(path, entry, "include"):
        merged = _Mapping(base.values | extra.values, extra.line, base.lines | extra.lines)
        for given in _combinations(path, notebook, merged):
            yield Run(notebook, given)


def _combinations(path: Path, notebook: Path, mapping: _Mapping) -> Iterator[dict[str, Any]]:
    values = _values(path, notebook, mapping)
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _values(path: Path, notebook: Path, mapping: _Mapping) -> dict[str, list[Any]]:
    """Parameter -> the checked values that it takes in turn."""
    takes, values = notebook_parameters(notebook), {}
    for name, node in mapping.values.items():
        value = yaml.SafeLoader("").construct_object(node, deep=True)
        is_axis = isinstance(value, list)
        if is_axis and name in takes and isinstance(takes[name].default, list):
            is_axis = bool(value) and all(isinstance(member, list) for member in value)
        try:
            members = value if is_axis else [value]
            values[name] = [check_parameters(notebook, {name: member})[name] for member in members]
        except InputError as error:
            raise _at(path, mapping.lines[name], error) from None
    return values


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
        if key.value in values:
            raise InputError(f"{path.name}, line {key.start_mark.line + 1}: {key.value!r} stands here twice.")
        values[key.value], lines[key.value] = value, key.start_mark.line + 1
    return _Mapping(values, line, lines)


def _at(path: Path, line: int, error: InputError) -> InputError:
    return InputError(f"{path.name}, line {line}: {error}")
