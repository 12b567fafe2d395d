"""A smaller model and its report as one folder, written whole or not at all."""

import shutil
import tempfile
from pathlib import Path

from toastlib.errors import InputError
from toastlib.judging import names_of
from toastlib.layers import CODE
from toastlib.report import report
from toastlib.take_away import TakeAway

WRITTEN = ("README.md", "config.json", *CODE, "preprocessor_config.json", "report.html", "*.onnx*")
"""What lies in such a folder beside the weights, ``model*.safetensors`` and their index."""


def deliver(taken: TakeAway, folder: str | Path) -> Path:
    """Write the model, its card and ``report.html``; beside the folder first, which then takes its place.

    Parameters
    ----------
    taken
        From `toastlib.take_away.shrink`.
    folder
        Where to write; it may be missing, empty, or an earlier one of these.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        If the folder exists and holds anything else, or cannot be written.
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


def check_folder(folder: str | Path) -> Path:
    """The folder, resolved, if `deliver` may write it: new, empty, or with nothing in it but what it writes itself.

    Its parents are made.

    Raises
    ------
    InputError
        If it is something else.
    """
    folder = Path(folder).resolve()
    if folder.exists():
        foreign = [folder] if not folder.is_dir() else [path for path in folder.iterdir() if not _is_ours(path)]
        if foreign:
            raise InputError(f"{folder} holds more than a smaller model ({foreign[0].name}): name another --out.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Nothing can be written to {folder}: {error.strerror}.") from error
    return folder


def _is_ours(path: Path) -> bool:
    return path.is_file() and any(map(path.match, (*WRITTEN, "model*.safetensors", "model.safetensors.index.json")))
