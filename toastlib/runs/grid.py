"""Grids of runs: a YAML file is read into checked runs, and every mistake is named with its line."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
Mapping = dict[str, tuple[int, yaml.Node]]  # key -> its line, and its value


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
    path, lines, runs = Path(path), {}, []
    nodes = _nodes(path)
    try:
        for node in nodes:
            entry = _entry(node)
            plugins = _plugins(entry, path.parent)
            for line, notebook, overrides in _expand(entry, _line(node)):
                run = Run(notebook, overrides, root, plugins, f"{path.name}, line {line}: ")
                if run.folder in lines:
                    values = ", ".join(f"{name}={value}" for name, value in overrides.items()) or "the default"
                    raise _error(line, f"the same run is asked for on line {lines[run.folder]} too: {values}.")
                lines[run.folder] = line
                runs.append(run)
    except InputError as error:
        raise InputError(f"{path.name}, {error}") from None
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


def _nodes(path: Path) -> list[yaml.Node]:
    try:
        root = yaml.compose(path.read_bytes(), yaml.SafeLoader)
    except OSError as error:
        raise InputError(f"The grid {str(path)!r} cannot be read: {error.strerror}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", error)
        raise InputError(f"{path.name}{where}: not YAML ({problem}).") from None
    return root.value if isinstance(root, yaml.SequenceNode) else [root] if root else []


def _entry(node: yaml.Node) -> Mapping:
    entry = _mapping(node)
    for key, (line, _) in entry.items():
        if key not in KEYS:
            raise _error(line, unknown("key", key, KEYS))
    if "notebook" not in entry:
        raise _error(_line(node), "a run needs a 'notebook', for example '02'.")
    return entry


def _expand(entry: Mapping, line: int) -> Iterator[tuple[int, Path, dict[str, Any]]]:
    """Line, notebook and overrides of each run of an entry."""
    notebook = _notebook(*entry["notebook"])
    names = defaults(notebook)
    base = _mapping(entry["parameters"][1], names) if "parameters" in entry else {}
    excluded = [_values(notebook, _mapping(node, names)) for node in _members(entry, "exclude")]
    met = set()  # numbers of the exclusions that leave something out
    for overrides in _combinations(notebook, base):
        whole = names | overrides
        out = {k for k, each in enumerate(excluded) if all(whole[name] in values for name, values in each.items())}
        met |= out
        if not out:
            yield line, notebook, overrides
    if unmet := set(range(len(excluded))) - met:
        raise _error(entry["exclude"][0], f"exclusion {min(unmet) + 1} fits no run.")
    for node in _members(entry, "include"):
        for overrides in _combinations(notebook, base | _mapping(node, names)):
            yield _line(node), notebook, overrides


def _combinations(notebook: Path, mapping: Mapping) -> Iterator[dict[str, Any]]:
    values = _values(notebook, mapping)
    return (dict(zip(values, combination)) for combination in product(*values.values()))


def _notebook(line: int, node: yaml.Node) -> Path:
    if not isinstance(node, yaml.ScalarNode):
        raise _error(line, "'notebook' takes a name, a number or a path.")
    with _on(line):
        notebook = find_notebook(node.value).resolve()
        defaults(notebook)
    return notebook


def _plugins(entry: Mapping, beside: Path) -> dict[str, str]:
    if "plugins" not in entry:
        return plugins_of()
    line, node = entry["plugins"]
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(member, yaml.ScalarNode) for member in nodes):
        raise _error(line, "'plugins' takes a Python file, or a list of them.")
    with _on(line):
        files = [Path(member.value).expanduser() for member in nodes]
        return plugins_of(file if file.exists() else beside / file for file in files)


def _values(notebook: Path, mapping: Mapping) -> dict[str, list[Any]]:
    """Parameter -> its checked values, one for each run."""
    default, values = defaults(notebook), {}
    for name, (line, node) in mapping.items():
        if name == "results_dir":
            raise _error(line, "results_dir is for the command: --results-dir.")
        is_axis = isinstance(node, yaml.SequenceNode)
        if is_axis and isinstance(default.get(name), list):
            is_axis = bool(node.value) and all(isinstance(member, yaml.SequenceNode) for member in node.value)
        values[name] = []
        for member in node.value if is_axis else [node]:
            with _on(max(line, _line(member))):  # an alias stands later than its anchor
                value = yaml.SafeLoader("").construct_object(member, deep=True)
                values[name] += check_parameters(notebook, {name: value}).values()
                if values[name][-1] in values[name][:-1]:
                    raise _error(_line(member), f"{name} has {values[name][-1]!r} twice.")
    return values


def _members(entry: Mapping, key: str) -> list[yaml.Node]:
    line, node = entry.get(key, (0, yaml.SequenceNode("", [])))
    if not isinstance(node, yaml.SequenceNode):
        raise _error(line, f"{key!r} takes a list of mappings.")
    return node.value


def _mapping(node: yaml.Node, names: Iterable[str] = ()) -> Mapping:
    """Read a mapping; members of dictionaries among the parameters `names` get their full names."""
    if not isinstance(node, yaml.MappingNode):
        raise _error(_line(node), "a mapping of names to values is needed here.")
    values = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _error(_line(key), "a name is needed here.")
        name = full_name(key.value, names)
        if name in values:
            raise _error(_line(key), f"{name!r} stands here twice.")
        values[name] = _line(key), value
    return values


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


@contextmanager
def _on(line: int) -> Iterator[None]:
    """Name the line of what goes wrong inside."""
    try:
        yield
    except InputError as error:
        raise _error(line, error) from None
    except yaml.YAMLError as error:
        raise _error(line, f"{getattr(error, 'problem', error)}.") from None


def _error(line: int, message: object) -> InputError:
    return InputError(f"line {line}: {message}")
