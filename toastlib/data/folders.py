"""A folder of pictures read by a walk of its tree: which files are pictures, of which split, and of which class."""

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from toastlib.errors import InputError

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
"""Names of folders, in any case, that are splits and not classes: where there is a training folder among them."""
LEFT_BEHIND = ("Thumbs.db", "desktop.ini", "__MACOSX", "__pycache__")
NO_PICTURES = ("MPEG", "PDF", "HDF5", "GRIB", "BUFR", "WMF")  # Pillow knows the names, and decodes none
METADATA = ("metadata.csv", "metadata.jsonl")
TABLES = (".parquet", ".arrow", ".tar", ".zip")  # which hold a data set of their own, whatever lies beside them
Picture = tuple[str, ...]  # the parts of a file's path below the folder


def read_image_folder(folder: str) -> dict[str, Any] | None:
    """Split -> rows with a column ``image`` and, where there are classes, a column ``label``; `None` if it is no such.

    With a folder for training, the folders of `SPLITS` are splits; without, all is the split ``"train"``. The folders
    in a split are classes, and what lies in them at any depth is of that class. A folder of tables, of pictures with
    ``metadata.csv``, or without any picture is left to `datasets`. What is skipped is counted in one warning.
    """
    files, formats = sorted(_walk(folder)), Image.registered_extensions()  # with the plugins, which this loads
    suffixes = {suffix for suffix, kind in formats.items() if kind in Image.OPEN and kind not in NO_PICTURES}
    pictures = [file for file in files if _suffix(file) in suffixes]
    if not pictures or any(file[-1] in METADATA or _suffix(file) in TABLES for file in files):
        return None
    skipped = Counter(_suffix(file) or "without a suffix" for file in set(files) - set(pictures))
    splits, depth = _splits(pictures, skipped)
    if "train" not in splits:
        raise InputError(f"{folder} has no split 'train', only {', '.join(splits)}.")
    if "test" in splits:
        skipped["for validation, which is not used"] += len(splits.pop("validation", []))
    classes = {name: sorted({file[depth] for file in part if len(file) > depth + 1}) for name, part in splits.items()}
    trained = set(classes["train"])
    names = sorted(trained.union(*classes.values()))
    for split, found in classes.items():
        if bool(found) != bool(trained):
            having, lacking = ("train", split) if trained else (split, "train")
            raise InputError(f"{folder} has folders of classes in its split {having!r}, and none in {lacking!r}.")
        if found and trained.isdisjoint(found):
            raise InputError(f"{folder} has no class that its splits 'train' and {split!r} share.")
    if untrained := [name for name in names if name not in trained]:
        warnings.warn(f"{folder} has no training image of {', '.join(untrained)}.", stacklevel=5)
    if names:
        for split, part in splits.items():
            splits[split] = [file for file in part if len(file) > depth + 1]
            skipped["in no class"] += len(part) - len(splits[split])
    if kinds := ", ".join(f"{count} {kind}" for kind, count in sorted((+skipped).items())):
        read = sum(map(len, splits.values()))
        warnings.warn(f"{folder}: {read} of {read + skipped.total()} files are read; skipped: {kinds}.", stacklevel=5)
    return {split: _table(folder, part, names, depth) for split, part in splits.items()}


def _splits(pictures: list[Picture], skipped: Counter[str]) -> tuple[dict[str, list[Picture]], int]:
    """The pictures of each split, and where in their paths the class is."""
    roots = {file[0].lower() for file in pictures if len(file) > 1}
    if not (roots and roots <= set(SPLITS)) and "train" not in map(SPLITS.get, roots):
        return {"train": pictures}, 0
    splits = defaultdict(list)
    for file in pictures:
        splits[SPLITS.get(file[0].lower()) if len(file) > 1 else None].append(file)
    skipped["beside the splits"] += len(splits.pop(None, []))
    return splits, 1


def _walk(folder: str) -> Iterator[Picture]:
    """The files below a folder but hidden ones and those that systems leave behind; a link upwards is not followed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"The folder {error.filename} cannot be read: {error.strerror}.") from error

    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        above = Path(root).resolve()
        folders[:] = [name for name in folders if not name.startswith(".") and name not in LEFT_BEHIND]
        folders[:] = [name for name in folders if not above.is_relative_to(Path(root, name).resolve())]
        parts = Path(root).relative_to(folder).parts
        yield from ((*parts, name) for name in files if not name.startswith(".") and name not in LEFT_BEHIND)


def _suffix(file: Picture) -> str:
    return Path(file[-1]).suffix.lower()


def _table(folder: str, files: list[Picture], names: list[str], depth: int) -> Any:
    import datasets

    columns: dict[str, list] = {"image": [str(Path(folder, *file)) for file in files]}
    features = {"image": datasets.Image(decode=False)}
    if names:
        number = {name: k for k, name in enumerate(names)}
        columns["label"] = [number[file[depth]] for file in files]
        features["label"] = datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))
