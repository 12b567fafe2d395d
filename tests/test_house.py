"""The rooms of `toastlib/` and the one way that imports point: no exception and no circle, lazy imports included."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = (
    "errors",
    "plugins",
    "output",
    "plan",
    "cache",
    "data",
    "models",
    "statistics",
    "translators",
    "approximation",
    "evaluation",
    "selection",
    "export",
    "paper",
    "plots",
    "runs",
    "cli",
)
"""A room may import from itself and from those before it. The package's own `__init__` loads names when asked."""
FILES = [file for file in sorted((ROOT / "toastlib").rglob("*.py")) if file != ROOT / "toastlib" / "__init__.py"]


def module_of(file):
    """``toastlib/data/images.py`` is ``data.images``."""
    return ".".join(file.relative_to(ROOT / "toastlib").with_suffix("").parts)


MODULES = {module_of(file): file for file in FILES}


def room_of(module):
    return module.split(".")[0]


def imports(module, source):
    """Modules that a module imports when it runs, anywhere in it; what only type checkers read is left out."""
    found = set()
    for node in nodes_that_run(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = node.module or ""
        if node.level:
            base = ".".join(["toastlib", *module.split(".")[: -node.level], *filter(None, [base])])
        if base.split(".")[0] != "toastlib":
            continue
        base = base.removeprefix("toastlib").removeprefix(".")
        for alias in node.names:
            longer = f"{base}.{alias.name}" if base else alias.name
            found.add(longer if longer in MODULES or not base else base)
    return found - {""}


def nodes_that_run(tree):
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes_that_run(node)


GRAPH = {module: imports(module, file.read_text(encoding="utf-8")) for module, file in MODULES.items()}


def circle(graph):
    """A circle of imports as a list of modules, or an empty list."""
    done, path = set(), []

    def visit(module):
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        path.append(module)
        for other in sorted(graph.get(module, ())):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    return next((found for module in sorted(graph) if (found := visit(module))), [])


def upward(graph):
    return {
        (module, other)
        for module, others in graph.items()
        for other in others
        if ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    }


def without_encoding(source):
    """Lines that read or write text in the encoding of the machine, which is another one on Windows."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    text = [call for call in calls if getattr(call.func, "attr", "") in ("read_text", "write_text")]
    return [call.lineno for call in text if "encoding" not in {keyword.arg for keyword in call.keywords}]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_text_is_read_and_written_as_utf_8(module):
    assert without_encoding(MODULES[module].read_text(encoding="utf-8")) == []


def test_a_line_without_an_encoding_is_found():
    assert without_encoding("file.read_text()\nfile.read_text(encoding='utf-8')\nfile.write_text('')") == [1, 3]


def of_one_system(source):
    """Names that a source takes from what Windows, or start-up by spawning, does not have."""
    named = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    imported = set(re.findall(r"^\s*(?:import|from) (fcntl|resource|pwd|multiprocessing)\b", source, re.M))
    return imported | (named & {"os.fork", "os.killpg", "os.setsid", "os.symlink", "os.uname", "signal.SIGKILL"})


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_needs_a_fork_or_one_system(module):
    assert of_one_system(MODULES[module].read_text(encoding="utf-8")) == set()


def test_what_one_system_alone_has_is_found():
    assert of_one_system("import os\nimport fcntl\nos.fork()\nos.getpid()") == {"fcntl", "os.fork"}


def test_every_module_is_in_a_room():
    present = {room_of(module_of(file)) for file in (ROOT / "toastlib").rglob("*.py")} - {"__init__"}
    assert present == set(ROOMS)


def test_imports_point_one_way():
    assert upward(GRAPH) == set()


def test_imports_go_in_no_circle():
    assert circle(GRAPH) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f():\n    from toastlib.evaluation.metrics import mcnemar", {"evaluation.metrics"}),
        ("from toastlib.evaluation import metrics", {"evaluation.metrics"}),
        ("from toastlib import errors", {"errors"}),
        ("if TYPE_CHECKING:\n    from toastlib.evaluation.metrics import mcnemar", set()),
    ],
)
def test_an_import_is_found_wherever_it_stands(source, found):
    assert imports("plan", source) == found


def test_an_import_that_points_up_or_in_a_circle_is_found():
    assert upward({"plan": {"evaluation.metrics"}}) == {("plan", "evaluation.metrics")}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
