"""Notebooks of the study and their parameters: names, types, defaults and comments, and checked values."""

import ast
import json
import pkgutil
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from toastlib.data import catalog
from toastlib.errors import InputError, real_number, unknown, whole_number
from toastlib.plan import parse_plans
from toastlib.plugins import look_up

NOTEBOOKS = catalog.ROOT / "notebooks"
KINDS = {"model": "model", "language_model": "model", "text_encoder": "model"}  # parameter -> what it names
KINDS |= {"dataset": "images", "datasets": "images", "others": "images", "text": "texts", "sentences.name": "texts"}
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list"}


class Parameter(NamedTuple):
    """One literal of a notebook's ``parameters`` cell, or one member of a dictionary there, with the line's comment."""

    name: str
    default: Any
    comment: str


def notebook_folder() -> Path:
    """The working folder if the study was copied there, see ``toast notebooks``; else where the study lies."""
    return Path.cwd() if Path("00_quickstart.ipynb").is_file() else NOTEBOOKS


def notebook_names() -> list[str]:
    """Names of the study's notebooks in order, without suffix."""
    return sorted(path.stem for path in notebook_folder().glob("[0-9][0-9]_*.ipynb"))


def find_notebook(name: str | Path) -> Path:
    """Find a notebook of the study by name or number, or any notebook by path; InputError if there is none."""
    name = str(name)
    if name.endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    matches = [stem for stem in notebook_names() if name in (stem, stem[:2])]
    if not matches:
        raise unknown("notebook", name, notebook_names())
    return notebook_folder() / f"{matches[0]}.ipynb"


def notebook_parameters(notebook: Path) -> dict[str, Parameter]:
    """Read the parameters of a notebook, in order; a dictionary's members are named as in ``head.seeds``.

    An `InputError` if it is no notebook, or has no cell tagged ``parameters``.
    """
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        tagged = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        found = _parameters(tagged[0]) if tagged else None
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{notebook.name!r} cannot be read as a notebook.") from error
    if found is None:
        raise InputError(f"{notebook.name} has no cell tagged 'parameters'.")
    return found


def _parameters(source: str) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign):
            name, value = node.targets[0].id, ast.literal_eval(node.value)
            comment = source.splitlines()[node.end_lineno - 1].partition("  # ")[2]
            members = {f"{name}.{key}": member for key, member in value.items()} if isinstance(value, dict) else None
            found |= {key: Parameter(key, default, comment) for key, default in (members or {name: value}).items()}
    return found


def notebook_variables(notebook: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Variables of the notebook that overrides change: ``{"head.seeds": 5}`` gives the whole dictionary ``head``."""
    variables: dict[str, Any] = {}
    for name, value in (defaults(notebook) | overrides).items():
        variable, _, member = name.partition(".")
        variables[variable] = variables.get(variable, {}) | {member: value} if member else value
    return {variable: variables[variable] for variable in dict.fromkeys(name.partition(".")[0] for name in overrides)}


def code_hash(notebook: Path) -> str:
    """Hash of a notebook's code; text and outputs do not count."""
    return _code(notebook, notebook.stat().st_mtime_ns)[0]


def defaults(notebook: Path) -> dict[str, Any]:
    """Default of each parameter of a notebook."""
    return _code(notebook, notebook.stat().st_mtime_ns)[1]


@lru_cache(64)  # a grid asks once for each of its runs; the time of the last change tells versions of a file apart
def _code(notebook: Path, modified: int) -> tuple[str, dict[str, Any]]:
    default = {name: parameter.default for name, parameter in notebook_parameters(notebook).items()}
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return sha256(json.dumps(code).encode()).hexdigest()[:16], default


def full_name(name: str, names: Iterable[str]) -> str:
    """A parameter's name, or that of the one member of a dictionary which is called so: ``seeds`` is ``head.seeds``."""
    members = [full for full in names if full.partition(".")[2] == name]
    return members[0] if name not in names and len(members) == 1 else name


def check_parameters(notebook: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Convert values to the types of the notebook's defaults, text included, and check that each can be used.

    An `InputError` if a name or a value, such as a model's, is unknown, a name is given twice, or a value has another
    type.
    """
    return _checked(notebook.stem, notebook_parameters(notebook), overrides)


def check_injected() -> None:
    """Check what papermill, without `toast`, has set in this kernel; an `InputError` as `check_parameters` raises.

    papermill writes a cell behind the one tagged ``parameters``, and takes any name and any value.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    for cell, injected in pairwise(shell.user_ns.get("In", []) if shell else []):
        if injected.startswith("# Parameters\n"):
            given = {name: parameter.default for name, parameter in _parameters(injected).items()}
            checked = _checked("this notebook", parameters := _parameters(cell), given)
            for name, value in given.items():
                name = full_name(name, parameters)
                if checked[name] != value:  # a text that only `toast` reads, such as a list's
                    raise _wrong_type(name, value, parameters[name].default)


def _checked(notebook: str, parameters: dict[str, Parameter], overrides: dict[str, Any]) -> dict[str, Any]:
    checked = {}
    for name, value in overrides.items():
        name = full_name(name, parameters)
        if name not in parameters:
            raise _not_there(notebook, name, parameters)
        if name in checked:
            raise InputError(f"Parameter {name} is given twice, by its full name and by its own.")
        checked[name] = _convert(name, value, parameters[name].default)
        for item in checked[name] if isinstance(checked[name], list) else [checked[name]]:
            _check_value(name.removeprefix("options."), item)
    return checked


def _not_there(notebook: str, name: str, parameters: Iterable[str]) -> InputError:
    """An error that says which notebooks have a parameter of that name, or which here is named nearly so."""
    have = [stem for stem in notebook_names() if full_name(name, known := defaults(find_notebook(stem))) in known]
    is_near = name.rstrip("s") in {known.rpartition(".")[2].rstrip("s") for known in parameters}
    if have and not is_near:
        return InputError(f"{notebook} has no parameter {name!r}: it is one of {', '.join(have)}.")
    return unknown(f"parameter of {notebook}", name, parameters)


def _convert(name: str, value: Any, default: Any) -> Any:
    wanted = type(default)
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is list and isinstance(value, tuple | range):
        value = list(value)
    if wanted is list and default and value in ([], "") and name != "others":  # further sets: there may be none
        raise _wrong_type(name, value, default)
    if type(value) is wanted:
        return [_convert(name, item, default[0]) for item in value] if wanted is list and default else value
    with suppress(ValueError, KeyError):
        if isinstance(value, str):
            return _read(name, value, default)
    raise _wrong_type(name, value, default)


def _wrong_type(name: str, value: Any, default: Any) -> InputError:
    return InputError(f"Parameter {name} takes {TYPE_NAMES[type(default)]} such as {default!r}, not {value!r}.")


def _read(name: str, text: str, default: Any) -> Any:
    """Text as the type of the default; raises ValueError or KeyError if it is not of that type."""
    if isinstance(default, bool):
        return {"true": True, "false": False}[text.lower()]
    if isinstance(default, list):
        if (inside := text.strip()).startswith("[") != inside.endswith("]"):
            raise ValueError(text)
        items = [item.strip() for item in inside.removeprefix("[").removesuffix("]").split(",")]
        if any(item[:1] in ("'", '"') and not item.endswith(item[0], 1) for item in items):
            raise ValueError(text)  # a quote that is not closed
        return _convert(name, [item.strip("'\"") for item in items if item], default)
    return type(default)(text)


def _check_value(name: str, value: Any) -> None:
    """Refuse a value that a parameter of that name, or an item of its list, cannot take."""
    kind = KINDS.get(name, name)
    if kind in CHECKS:
        pkgutil.resolve_name(CHECKS[kind])(value)
    match kind:
        case "texts":
            catalog.dataset_entry(value, catalog.TEXTS)
        case "plans":
            from toastlib.paper import table_plans

            if table := re.fullmatch(r"\s*table\s*(\w+)\s*", value):
                table_plans(table[1])
            elif value.strip() != "paper":
                parse_plans(value.split(","))
        case "metrics":
            from toastlib.statistics.similarity import METRICS

            look_up("metric", value, METRICS)
        case "choice.criterion":
            from toastlib.selection.criteria import CRITERIA

            look_up("criterion", value, CRITERIA)
        case "templates":
            from toastlib.evaluation.zero_shot import check_templates

            check_templates([value])
    if type(value) is int and name.endswith((*NOT_NEGATIVE, *POSITIVE)):
        whole_number(name, value, least=int(name.endswith(POSITIVE)))
    if name.endswith("learning_rate"):
        real_number(name, value, above=0)
    if value not in CHOICES.get(name, [value]):
        raise unknown(name, value, CHOICES[name])


CHECKS = {  # parameter, or what it names -> the function that refuses values, imported on first use
    "model": "toastlib.data.catalog:model_path",
    "images": "toastlib.data.catalog:dataset_entry",
    "plan": "toastlib.plan:Plan.parse",
    "device": "toastlib.models.loading:resolve_device",
    **dict.fromkeys(("translator", "translators"), "toastlib.translators.base:make_translator"),
}
# How names of numbers end that are never negative, and of those that are never 0 either.
NOT_NEGATIVE = ("_size", "steps", "remove", "removed", "candidates", "rerank")
POSITIVE = ("calibration_size", "calibration_sizes", "batch_size", "repeats", "head.seeds")
CHOICES = {
    "dtype": ("fastest", "float32", "bfloat16", "float64"),
    "features": ("cls", "mean", "pooler"),
    "text_features": ("cls", "mean", "pooler", "last"),
    "head.protocol": ("retrained", "frozen", "own"),
}
