"""What commands write: a folder or a file, whole or not at all, and never over what somebody else has made."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from toastlib.errors import InputError

MARK = ".toastlib.json"
"""In a folder that toastlib wrote: the SHA-256 of each of its files. What has changed since is somebody's work."""


def check_output(target: str | Path, reads: Iterable[str | Path] = (), force: bool = False) -> Path:
    """Return the resolved path of a folder or file if it may be written; the folders above it are made.

    An `InputError` if it is, holds or lies in something of `reads`, or holds the working folder, whatever `force` says;
    unless `force`, if it exists and is not as toastlib wrote it; or if nothing can be written there.
    """
    target = Path(target).resolve()
    for source in (Path(name).resolve() for name in reads):
        if source.exists() and (target == source or target in source.parents or source in target.parents):
            raise InputError(f"{target} would overwrite {source}, which is read: name another --out.")
    if target == Path.cwd() or target in Path.cwd().parents:
        raise InputError(f"{target} holds the working folder: name a folder inside it.")
    if not force and (reason := _foreign(target)):
        raise InputError(f"{target} {reason}: name another --out, or say --force to replace it.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise InputError(f"Nothing can be written to {target}: {error.strerror}.") from error
    return target


@contextmanager
def writing(target: str | Path, reads: Iterable[str | Path] = (), force: bool = False) -> Iterator[Path]:
    """Yield a path beside `target` to write a folder or a file to; it takes the target's place when all is written.

    `check_output` says what is refused. If writing fails, the target is as it was, and a full disk is an `InputError`.
    """
    target = check_output(target, reads, force)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    new, earlier = work / target.name, work / "earlier"
    try:
        yield new
        if new.is_dir():
            _mark(new, sorted(path for path in new.rglob("*") if path.is_file()))
            if target.exists():
                target.rename(earlier)
            new.rename(target)
        else:
            new.replace(target)
            if (target.parent / MARK).exists():
                _mark(target.parent, [target])
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise InputError(f"Nothing was written to {target}: {reason}.") from error
    finally:
        if earlier.exists() and not target.exists():
            earlier.rename(target)
        shutil.rmtree(work, ignore_errors=True)


def _mark(folder: Path, files: Iterable[Path]) -> None:
    hashes = _marked(folder) | {file.relative_to(folder).as_posix(): _hash(file) for file in files}
    (folder / MARK).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def _marked(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or none of toastlib's
        return {}


def _foreign(target: Path) -> str:
    """Why an existing folder or file is not toastlib's to replace, or nothing."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return ""
    folder = target if target.is_dir() else target.parent
    marked = _marked(folder)
    files = [target]
    if folder == target:
        files = [path for path in folder.rglob("*") if path != folder / MARK and (path.is_symlink() or path.is_file())]
    if not marked:
        return "exists, and toastlib did not write it"
    for file in files:
        name = file.relative_to(folder).as_posix()
        if name not in marked:
            return f"holds {name}, which toastlib did not write"
        if _hash(file) != marked[name]:
            return f"holds {name}, which has been changed"
    return ""


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
