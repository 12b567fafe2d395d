"""A smaller model and its report as one folder, written whole or not at all."""

import shutil
import tempfile
from pathlib import Path

from toastlib.errors import InputError
from toastlib.evaluation.heads import names_of
from toastlib.export.compress import CompressionResult
from toastlib.export.report import MARK, report
from toastlib.models.layers import CODE

WRITTEN = ("README.md", "config.json", *CODE, "preprocessor_config.json", "report.html", "*.onnx*")
"""What lies in such a folder beside the weights, ``model*.safetensors`` and their index."""


def save_compressed(taken: CompressionResult, folder: str | Path) -> Path:
    """Write the model, its card and ``report.html``; beside the folder first, which then takes its place.

    Parameters
    ----------
    taken
        From `compress`.
    folder
        Where to write; it may be missing, empty, or an earlier one of these.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        If the folder exists and was not written by this function, or cannot be written.
    """
    folder = check_folder(folder)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    earlier = part.with_name(f"{part.name}.old")
    try:
        head = taken.head
        taken.encoder.save_pretrained(part, head=head.module, class_names=names_of(head), card=taken.card)
        (part / "report.html").write_text(report(taken), encoding="utf-8")
        part.chmod(0o755)  # mkdtemp's are for their owner alone
        if folder.exists():
            folder.rename(earlier)
        part.rename(folder)
    except BaseException:
        if earlier.exists() and not folder.exists():
            earlier.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
    return folder


def check_folder(folder: str | Path, *inputs: str | Path) -> Path:
    """Return the resolved folder if `save_compressed` may write it: it is new, empty, or its own.

    A folder that holds weights alone may be somebody's only copy of a fine-tuned checkpoint. So a folder is replaced
    only if its ``report.html`` says that toastlib wrote it, and nothing else has been put beside it since. The folder's
    parents are made.

    Parameters
    ----------
    folder
        Where the smaller model is to be written.
    *inputs
        Names of the model and of the data set that are read; those of no folder are ignored.

    Raises
    ------
    InputError
        If the folder holds, or lies in, a folder that is read; or if `save_compressed` did not write it.
    """
    folder = Path(folder).resolve()
    for source in (Path(str(name).partition(":")[0]).resolve() for name in inputs):
        if not source.is_dir():
            continue
        if folder == source or folder in source.parents or source in folder.parents:
            raise InputError(f"{folder} would overwrite {source}, which is read: name another --out.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        foreign = [folder] if not folder.is_dir() else [path for path in folder.iterdir() if not _is_ours(path)]
        if foreign:
            raise InputError(f"{folder} holds more than a smaller model ({foreign[0].name}): name another --out.")
        report_page = folder / "report.html"
        if not report_page.is_file() or MARK not in report_page.read_text(encoding="utf-8", errors="replace"):
            raise InputError(f"{folder} was not written by `toast approximate`: name another --out.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Nothing can be written to {folder}: {error.strerror}.") from error
    return folder


def _is_ours(path: Path) -> bool:
    return path.is_file() and any(map(path.match, (*WRITTEN, "model*.safetensors", "model.safetensors.index.json")))
