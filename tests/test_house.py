"""The README's map of the house: every module is a room on it, and imports point one way."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAP = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Map of the house")[2]
FLOORS = [line.split("|")[2] for line in MAP.splitlines() if line.startswith("| ")]
ROOMS = [room for floor in FLOORS for room in re.findall(r"`(\w+)`", floor)]
UPWARDS = {("models", "saving")}  # Encoder.save_pretrained, as transformers has it


def room_of(file):
    return file.relative_to(ROOT / "toastlib").parts[0].removesuffix(".py")


def imported_rooms(source):
    """Rooms that a module imports from, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "toastlib":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toastlib."):
            yield node.module.split(".")[1]


def upward_imports(room, source):
    return {(room, other) for other in imported_rooms(source) if ROOMS.index(other) > ROOMS.index(room)}


FILES = [file for file in sorted((ROOT / "toastlib").rglob("*.py")) if room_of(file) != "__init__"]


def test_every_module_has_its_place_on_the_map():
    assert sorted(ROOMS) == sorted({room_of(file) for file in FILES})


def test_imports_point_one_way():
    upwards = [upward_imports(room_of(file), file.read_text(encoding="utf-8")) for file in FILES]
    assert set().union(*upwards) == UPWARDS


def test_an_import_that_points_upwards_is_found():
    assert upward_imports("plan", "def f():\n    from toastlib.evaluation.sweep import sweep") == {("plan", "sweeps")}
    assert upward_imports("plan", "from toastlib import errors, plots") == {("plan", "plots")}
