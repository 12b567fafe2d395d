"""Grids of runs: a YAML file is read into checked runs, and every mistake is named with its line."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from toastlib.data.catalog import ROOT
from toastlib.errors import InputError, unknown
from toastlib.plugins import plugins_of
from toastlib.runs.parameters import check_parameters, defaults, find_notebook, full_name
from toastlib.runs.store import Run

GRIDS = ROOT / "grids"
KEYS = ("notebook", "plugins", "parameters", "include", "exclude")


def read_grid(path: str | Path, root: Path = Path("results")) -> list[Run]:
    """Read the runs of a grid file.

    The file holds one entry or a list of them, each with a ``notebook`` (name, number or path) and

    - ``plugins``: Python files, one or a list, here or beside the grid, that are imported before the notebook's cells,
      and before values here are checked; see `plugins_of`;
    - ``parameters``: name -> value. A list gives one run for each of its members, several lists every combination; for
      a parameter that is itself a list, a list of lists does;
    - ``include``: a list of mappings that extend or replace ``parameters``, one for each further run;
    - ``exclude``: a list of mappings; combinations that agree with one of them are left out.

    An `InputError` if the file is not readable as such, a key, notebook, plug-in, parameter or value is wrong, or two
    runs are the same; the message names the line.
    """
    path = Path(path)
    lines: dict[Path, int] = {}
    runs = []
    for entry in _entries(path):
        plugins = _plugins(entry)
        for line, notebook, overrides in _expand(entry):
            run = Run(notebook, overrides, root, plugins)
            if run.folder in lines:
                raise _error(path, line, f"the same run is asked for on line {lines[run.folder]} too.")
            lines[run.folder] = line
            runs.append(run)
    if not runs:
        raise InputError(f"{path.name} asks for no run.")
    return runs


def paper_grid(table: str | None = None, root: Path = Path("results")) -> list[Run]:
    """Read the runs of one of the paper's tables, or of all; InputError if that table has no accuracies."""
    files = {path.stem.removeprefix("paper-table-"): path for path in GRIDS.glob("paper-table-*.yaml")}
    tables = sorted(files, key=int)
    if table is not None and table not in files:
        raise unknown("table", table, tables)
    return [run for name in ([table] if table else tables) for run in read_grid(files[name], root)]


@dataclass(frozen=True)
class _Mapping:
    """A mapping of the file with its line: key -> the key's line and its value."""

    path: Path
    line: int
    values: dict[str, tuple[int, yaml.Node]]


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
        for key, (line, _) in entry.values.items():
            if key not in KEYS:
                raise _error(path, line, unknown("key", key, KEYS))
        if "notebook" not in entry.values:
            raise _error(path, entry.line, "a run needs a 'notebook', for example '02'.")
        yield entry


def _expand(entry: _Mapping) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Line, notebook and overrides of each run of an entry."""
    notebook = _notebook(entry)
    names, base = defaults(notebook), {}
    if "parameters" in entry.values:
        base = _mapping(entry.path, entry.values["parameters"][1], names).values
    excluded = [_values(notebook, mapping) for mapping in _members(entry, "exclude", names)]
    met = set()  # numbers of the exclusions that leave something out
    for overrides in _combinations(notebook, replace(entry, values=base)):
        whole = names | overrides
        out = {k for k, each in enumerate(excluded) if all(whole[name] in values for name, values in each.items())}
        met |= out
        if not out:
            yield entry.line, notebook, overrides
    if unmet := set(range(len(excluded))) - met:
        raise _error(entry.path, entry.values["exclude"][0], f"exclusion {min(unmet) + 1} fits no run.")
    for extra in _members(entry, "include", names):
        for overrides in _combinations(notebook, replace(extra, values=base | extra.values)):
            yield extra.line, notebook, overrides


def _combinations(notebook: Path, mapping: _Mapping) -> Iterator[dict[str, Any]]:
    values = _values(notebook, mapping)
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _notebook(entry: _Mapping) -> Path:
    line, node = entry.values["notebook"]
    if not isinstance(node, yaml.ScalarNode):
        raise _error(entry.path, line, "'notebook' takes a name, a number or a path.")
    try:
        notebook = find_notebook(node.value).resolve()
        defaults(notebook)
    except InputError as error:
        raise _error(entry.path, line, error) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _error(entry.path, line, f"{node.value!r} cannot be read as a notebook.") from error
    return notebook


def _plugins(entry: _Mapping) -> dict[str, str]:
    if "plugins" not in entry.values:
        return plugins_of()
    line, node = entry.values["plugins"]
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(member, yaml.ScalarNode) for member in nodes):
        raise _error(entry.path, line, "'plugins' takes a Python file, or a list of them.")
    try:
        files = [Path(member.value).expanduser() for member in nodes]
        return plugins_of(file if file.exists() else Path(entry.path).parent / file for file in files)
    except InputError as error:
        raise _error(entry.path, line, error) from None


def _values(notebook: Path, mapping: _Mapping) -> dict[str, list[Any]]:
    """Parameter -> its checked values, one for each run."""
    default, values = defaults(notebook), {}
    for name, (line, node) in mapping.values.items():
        if name == "results_dir":
            raise _error(mapping.path, line, "results_dir is for the command: --results-dir.")
        is_axis = isinstance(node, yaml.SequenceNode)
        if is_axis and isinstance(default.get(name), list):
            is_axis = bool(node.value) and all(isinstance(member, yaml.SequenceNode) for member in node.value)
        members = node.value if is_axis else [node]
        values[name] = [_value(notebook, mapping.path, line, name, member) for member in members]
    return values


def _value(notebook: Path, path: Path, line: int, name: str, node: yaml.Node) -> Any:
    line = max(line, node.start_mark.line + 1)  # an alias stands later than its anchor
    try:
        value = yaml.SafeLoader("").construct_object(node, deep=True)
        return check_parameters(notebook, {name: value})[name]
    except InputError as error:
        raise _error(path, line, error) from None
    except yaml.YAMLError as error:
        raise _error(path, line, f"{getattr(error, 'problem', error)}.") from None


def _members(entry: _Mapping, key: str, names: Iterable[str]) -> list[_Mapping]:
    if key not in entry.values:
        return []
    line, node = entry.values[key]
    if not isinstance(node, yaml.SequenceNode):
        raise _error(entry.path, line, f"{key!r} takes a list of mappings.")
    return [_mapping(entry.path, member, names) for member in node.value]


def _mapping(path: Path, node: yaml.Node, names: Iterable[str] = ()) -> _Mapping:
    """Read a mapping; members of dictionaries among the parameters `names` get their full names."""
    line = node.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        raise _error(path, line, "a mapping of names to values is needed here.")
    values = {}
    for key, value in node.value:
        key_line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise _error(path, key_line, "a name is needed here.")
        name = full_name(key.value, names)
        if name in values:
            raise _error(path, key_line, f"{name!r} stands here twice.")
        values[name] = key_line, value
    return _Mapping(path, line, values)


def _error(path: Path, line: int, message: object) -> InputError:
    return InputError(f"{path.name}, line {line}: {message}")
