"""A notebook's parameters: their names, types, defaults and comments, and values checked against them."""

import ast
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toastlib.data import catalog
from toastlib.errors import InputError, unknown
from toastlib.plan import Plan, parse_plans


@dataclass(frozen=True)
class Parameter:
    """One literal of a notebook's ``parameters`` cell and the comment beside it."""

    name: str
    default: Any
    comment: str


def notebook_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook, in order.

    Raises
    ------
    InputError
        If the notebook has no cell tagged ``parameters``.
    """
    cells = json.loads(notebook.read_text())["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if not tagged:
        raise InputError(f"{notebook.name} has no cell tagged 'parameters'.")
    source = "".join(tagged[0]["source"])
    lines = source.splitlines()
    return {
        node.targets[0].id: Parameter(
            node.targets[0].id, ast.literal_eval(node.value), lines[node.end_lineno - 1].partition("  # ")[2]
        )
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
    }


def check_parameters(notebook: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Given values as the notebook's types, every one of them known and usable.

    Parameters
    ----------
    notebook
        Path of the notebook.
    given
        Name -> value; text stands for any type, as on a command line.

    Raises
    ------
    InputError
        If a name is unknown, a value is of another type than the default, or a model, data set, plan, device, dtype,
        translator or head of that name does not exist.
    """
    parameters = notebook_parameters(notebook)
    checked = {}
    for name, value in given.items():
        if name not in parameters:
            raise unknown(f"parameter of {notebook.stem}", name, parameters)
        checked[name] = _convert(name, value, parameters[name].default)
        if name in CHECKS:
            CHECKS[name](checked[name])
    return checked


def _convert(name: str, value: Any, default: Any) -> Any:
    wanted = type(default)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is wanted:
        return [_convert(name, item, default[0]) for item in value] if wanted is list and default else value
    if isinstance(value, tuple | range) and wanted is list:
        return _convert(name, list(value), default)
    try:
        if isinstance(value, str):
            return READERS[wanted](name, value, default)
    except ValueError:
        pass
    raise InputError(f"Parameter {name} takes {TYPE_NAMES[wanted]} such as {default!r}, not {value!r}.")


def _read_bool(name: str, text: str, default: bool) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _read_list(name: str, text: str, default: list) -> list:
    items = [item.strip().strip("'\"") for item in re.sub(r"^\s*\[|\]\s*$", "", text).split(",")]
    return _convert(name, [item for item in items if item], default)


READERS: dict[type, Callable[[str, str, Any], Any]] = {
    int: lambda name, text, default: int(text),
    float: lambda name, text, default: float(text),
    str: lambda name, text, default: text,
    bool: _read_bool,
    list: _read_list,
}
TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list"}


def _check_device(name: str) -> None:
    from toastlib.models.loading import resolve_device

    resolve_device(name)


def _check_translator(name: str) -> None:
    from toastlib.translators.base import make_translator

    make_translator(name)


def _check_plans(text: str) -> None:
    from toastlib.paper import table_plans

    if match := re.fullmatch(r"\s*table\s*(\w+)\s*", text):
        table_plans(match[1])
    elif text.strip() != "paper":
        parse_plans(text.split(","))


def _check_templates(texts: list[str]) -> None:
    from toastlib.evaluation.zero_shot import check_templates

    check_templates(texts)


def _one_of(kind: str, choices: tuple[str, ...]) -> Callable[[str], None]:
    def check(name: str) -> None:
        if name not in choices:
            raise unknown(kind, name, choices)

    return check


def _each(check: Callable[[str], Any]) -> Callable[[list[str]], None]:
    def check_all(names: list[str]) -> None:
        for name in names:
            check(name)

    return check_all


CHECKS: dict[str, Callable[[Any], Any]] = {
    "model": catalog.model_path,
    "language_model": catalog.model_path,
    "text_encoder": catalog.model_path,
    "dataset": catalog.dataset_entry,
    "datasets": _each(catalog.dataset_entry),
    "text": catalog.text_entry,
    "sentences": catalog.text_entry,
    "plan": Plan.parse,
    "plans": _check_plans,
    "device": _check_device,
    "dtype": _one_of("dtype", ("auto", "float32", "bfloat16", "float64")),
    "features": _one_of("features", ("cls", "mean", "pooler")),
    "text_features": _one_of("features", ("cls", "mean", "pooler", "last")),
    "head": _one_of("head", ("retrained", "frozen")),
    "translator": _check_translator,
    "translators": _each(_check_translator),
    "closed_forms": _each(_check_translator),
    "templates": _check_templates,
}
