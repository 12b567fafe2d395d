"""Plug-ins: files and packages that register translators, metrics, criteria, models and data sets of your own.

Files are named in grids, in runs and by ``TOAST_PLUGINS``, separated as in ``PATH``. Packages name a module in their
entry points, group ``toastlib``; it is imported when a name is asked for that nobody has registered, so that a broken
package harms no one who does without it.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from importlib import metadata, util
from pathlib import Path
from typing import Any

from toastlib.errors import InputError, unknown

VARIABLE, GROUP = "TOAST_PLUGINS", "toastlib"
_imported: dict[str, str] = {}
_registries: dict[str, tuple[dict, dict]] = {}  # kind -> its names, and those that are built in


def plugins_of(files: str | Iterable[str | Path] = ()) -> dict[str, str]:
    """Import the plug-ins of the environment and these files, a list or text with commas; path -> SHA-256 of each.

    An `InputError` if a file cannot be read, raises an error, has the name of another module, or replaces a built-in.
    """
    files = [file.strip() for file in files.split(",")] if isinstance(files, str) else list(files)
    named = filter(None, [*os.environ.get(VARIABLE, "").split(os.pathsep), *files])
    hashes = hash_files(Path(file).expanduser().resolve() for file in named)
    for file, digest in hashes.items():
        if _imported.get(file) != digest:
            _imported[file] = digest  # first: the plug-in imports toastlib, which asks for plug-ins
            try:
                with _replacing_none(file):
                    _import(Path(file))
            except BaseException:
                del _imported[file]
                raise
    return hashes


def hash_files(files: Iterable[str | Path]) -> dict[str, str]:
    """Path -> SHA-256 of the file's content; an `InputError` if one cannot be read."""
    try:
        return {str(file): sha256(Path(file).read_bytes()).hexdigest() for file in files}
    except OSError as error:
        raise InputError(f"The plug-in {error.filename} cannot be read: {error.strerror}.") from None


def registry(kind: str, names: dict) -> None:
    """Let plug-ins add to the names of a kind, such as ``"translator"``, and replace none of those that it has now."""
    _registries[kind] = names, dict(names)


@contextmanager
def _replacing_none(plug_in: object) -> Iterator[None]:
    before = {kind: {name: names.get(name) for name in built_in} for kind, (names, built_in) in _registries.items()}
    yield
    for kind, (names, built_in) in _registries.items():
        kept = before.get(kind, built_in)
        replaced = [name for name, value in kept.items() if names.get(name) is not value]
        names.update(kept)
        if replaced:
            raise InputError(
                f"The plug-in {plug_in} replaces the built-in {kind} {replaced[0]!r}: name yours otherwise."
            )


def _import(file: Path) -> None:
    found = None if "." in file.stem else util.find_spec(file.stem)
    if found and (not found.origin or Path(found.origin).resolve() != file):
        raise InputError(f"The plug-in {file} has the name of another module, {file.stem}: rename it.")
    spec = util.spec_from_file_location(file.stem, file)
    if spec is None:
        raise InputError(f"The plug-in {file} is no Python file.")
    module = sys.modules[file.stem] = util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[file.stem]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = lines[-1] if lines else getattr(error, "lineno", 1)
        raise InputError(f"The plug-in {file}, line {line}: {type(error).__name__}: {error}") from error


@cache
def load_named() -> None:
    """Import the files that the environment names; `plugins_of` says what is refused."""
    plugins_of()


@cache
def _load_installed() -> None:
    load_named()
    for entry in metadata.entry_points(group=GROUP):
        try:
            with _replacing_none(entry.value):
                entry.load()
        except Exception as error:  # of other people's code
            warnings.warn(f"The plug-in {entry.value} cannot be imported: {error}", stacklevel=3)


def is_known(name: str, registry: Container[str]) -> bool:
    """Whether a registry has a name, once installed plug-ins were asked for it."""
    if name not in registry:
        _load_installed()
    return name in registry


def look_up(kind: str, name: str, registry: Mapping[str, Any]) -> Any:
    """The value of a name, such as a ``"metric"``; an `InputError` if no plug-in has registered it either."""
    if not is_known(name, registry):
        raise unknown(kind, name, registry)
    return registry[name]
