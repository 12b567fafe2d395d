"""Data sets from the Hub and from local folders: their splits, their columns, and the rows drawn from them, decoded."""

import contextlib
import glob
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from toastlib.data import catalog
from toastlib.data.catalog import DatasetEntry
from toastlib.data.folders import read_image_folder
from toastlib.data.transforms import Chunk
from toastlib.errors import InputError, unknown

STREAM_FROM = 10e9  # bytes of download
BUFFER = 1000  # rows among which a stream is shuffled, from files in random order; they are held undecoded
CHUNK = 64  # rows that are decoded at a time
COLUMN_TYPES = {"image": "Image", "label": "ClassLabel", "text": None}  # kind of column -> type of `datasets`
COLUMN_NAMES = {
    "image": ("image", "img"),
    "text": ("text", "sentence", "content", "review"),
    "label": ("label", "labels", "class", "target"),
}
"""Kind of column -> usual names, for sets in which no column is of the type."""


@dataclass(frozen=True)
class DatasetTable:
    """A split of a `datasets.Dataset` whose image column is not decoded."""

    rows: Any
    image: str
    label: str | None
    class_names: tuple[str, ...]
    skip_broken: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: list[int]) -> Chunk:
        """Decode images and number labels, of these rows only."""
        return _read(self.rows.select(rows)[:], rows, self)


@dataclass(frozen=True)
class StreamedTable:
    """A split of a `datasets.IterableDataset`: only the rows that are drawn are fetched."""

    rows: Any
    image: str
    label: str | None
    class_names: tuple[str, ...]
    path: str
    fifths: range = range(5)  # rows of every five of the shuffled stream that are of this split
    skip_broken: bool = False

    def draw(self, n: int, seed: int, shard: tuple[int, int] = (0, 1)) -> Iterator[Chunk]:
        """Decode a shard of `n` rows (fewer if the stream ends) drawn without replacement, `CHUNK` at a time."""
        stream = enumerate(self.rows.shuffle(seed=seed, buffer_size=BUFFER))
        drawn = enumerate(islice((row for k, row in stream if k % 5 in self.fifths), n))
        drawn = islice(drawn, shard[0], None, shard[1])
        while chunk := self._fetch(drawn):
            columns = {name: [row[name] for _, row in chunk] for name in (self.image, self.label) if name}
            yield _read(columns, [k for k, _ in chunk], self)

    def _fetch(self, drawn: Iterator[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
        with catalog.loading("data set", self.path):
            return list(islice(drawn, CHUNK))


@dataclass(frozen=True)
class TextTable:
    """Texts of one split, and labels of shape (texts,)."""

    texts: list[str]
    labels: Tensor | None
    class_names: tuple[str, ...]


def open_table(
    entry: DatasetEntry, image: str | None, seed: int, skip_broken: bool = False
) -> tuple[DatasetTable | StreamedTable, ...]:
    """Training and test rows of a set of images, from the Hub or a local folder; nothing is decoded yet.

    A set without a test split gives a fifth of its rows to it, by class. Sets above `STREAM_FROM` are streamed.
    """
    train, test = _open_splits(entry, read_image_folder)
    image = _find_column(image or entry.image, "image", train.features, entry.path)
    label = _find_column(entry.label, "label", train.features, entry.path)
    if label is None and (others := [name for name in train.features or () if name != image]):
        column = f"'{entry.path}:{others[0]}' names one"
        warnings.warn(f"{entry.path} has no label column, and is taken without labels: {column}.", stacklevel=5)
    names = _class_names(train, label)
    if is_streamed(train):
        splits = [(train, range(4)), (train, range(4, 5))] if test is None else [(train, range(5)), (test, range(5))]
        return tuple(
            StreamedTable(_undecoded(rows, image, label), image, label, names, entry.path, fifths, skip_broken)
            for rows, fifths in splits
        )
    splits = _split(train, label, seed, entry.path) if test is None else (train, test)
    return tuple(DatasetTable(_undecoded(rows, image, label), image, label, names, skip_broken) for rows in splits)


def open_texts(entry: DatasetEntry, text: str | None, seed: int) -> tuple[TextTable, TextTable]:
    """Training and test texts, from the Hub or a local folder, split as by `open_table`; nothing is streamed."""
    train, test = _open_splits(entry)
    if is_streamed(train):
        raise InputError(f"{entry.path} takes more than {STREAM_FROM / 1e9:.0f} GB: only images are streamed.")
    text = _find_column(text or entry.text, "text", train.features, entry.path)
    label = _find_column(entry.label, "label", train.features, entry.path)
    names = _class_names(train, label)
    tables = []
    for rows in _split(train, label, seed, entry.path) if test is None else (train, test):
        labels = None if label is None else _number_labels(list(rows[label]), range(len(rows)), names)
        tables.append(TextTable([cell or "" for cell in rows[text]], labels, names))
    return tuple(tables)


def _open_splits(entry: DatasetEntry, read_folder: Callable[[str], Any] | None = None) -> tuple[Any, Any | None]:
    """Training rows, and test rows if the set has a split for them; `read_folder` may know a folder better."""
    here = Path(entry.path).is_dir() and not entry.streamed
    splits = (read_folder(entry.path) if read_folder and here else None) or load_splits(entry)
    if entry.train not in splits:
        raise InputError(f"{entry.path} has no split {entry.train!r}, only {', '.join(splits)}.")
    test = next((name for name in (entry.test, "test", "validation") if name in splits), entry.train)
    return splits[entry.train], None if test == entry.train else splits[test]


def load_splits(entry: DatasetEntry) -> Any:
    """Split -> rows, as `datasets` loads them; streamed if they take more than `STREAM_FROM`."""
    import datasets

    if Path(entry.path).is_dir() and glob.escape(entry.path) != entry.path:
        raise InputError(f"{entry.path}: the datasets library reads *, ? and [ as patterns: rename the folder.")
    path, revision = catalog.split_revision(entry.path)
    names, bars = [path, *filter(None, [entry.config])], datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with catalog.loading("data set", entry.path):
            if Path(path).is_dir():
                return datasets.load_dataset(*names, streaming=entry.streamed)
            # Without the Hub the library takes any revision that its cache has: each has a cache of its own.
            cache = revision and Path(datasets.config.HF_DATASETS_CACHE, "revisions", quote(revision, ""))
            builder = datasets.load_dataset_builder(*names, revision=revision, cache_dir=cache and str(cache))
            catalog.COMMITS.add(f"{path}@{builder.hash}")
            if entry.streamed or _download_size(builder) > STREAM_FROM:
                return builder.as_streaming_dataset()
            builder.download_and_prepare()
            return builder.as_dataset()
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _download_size(builder: Any) -> int:
    """Bytes to download: what the Hub says of the branch ``main``; of another revision the sizes of its files."""
    from huggingface_hub import HfFileSystem

    files = [file for split in (builder.config.data_files or {}).values() for file in split if file.startswith("hf:")]
    return builder.info.download_size or sum(map(HfFileSystem().size, files))


def is_streamed(rows: Any) -> bool:
    """Whether rows are fetched one by one, so that their number is not known."""
    return not hasattr(rows, "__len__")


def _split(rows: Any, label: str | None, seed: int, path: str) -> list[Any]:
    """Four fifths of the rows and one fifth, by class."""
    from sklearn.model_selection import train_test_split

    labels = None if label is None else list(rows[label])
    if labels:
        _check_labelled(labels, range(len(rows)))
    try:
        parts = train_test_split(range(len(rows)), test_size=0.2, random_state=seed, stratify=labels)
    except ValueError as error:
        few = f"its {len(rows)} rows, or those of a class, are too few to take a fifth of them"
        raise InputError(f"{path} has no split 'test', and {few}.") from error
    return [rows.select(part) for part in parts]


def _find_column(name: str | None, kind: str, features: dict[str, Any], path: str) -> str | None:
    """The column of a kind: the one named, else the one of its type, else the one with a usual name."""
    if name is not None:
        if name not in features:
            raise unknown(f"{kind} column", name, features)
        return name
    found = [column for column, feature in features.items() if type(feature).__name__ == COLUMN_TYPES[kind]]
    found = found or [column for column in COLUMN_NAMES[kind] if column in features]
    if len(found) > 1:
        how = f", for example '{path}:{found[-1]}'." if kind == "label" else f" by {kind}_column=..."
        raise InputError(f"{path} has the {kind} columns {', '.join(found)}: name one{how}")
    if not found and kind != "label":  # labels may be missing
        raise InputError(f"{path} has no {kind} column, only {', '.join(features)}.")
    return found[0] if found else None


def _class_names(rows: Any, label: str | None) -> tuple[str, ...]:
    """The names of the classes: those of the column's type, or the values that it holds, in order."""
    if label is None:
        return ()
    feature = rows.features[label]
    if type(feature).__name__ == COLUMN_TYPES["label"]:
        return tuple(feature.names)
    dtype = getattr(feature, "dtype", type(feature).__name__)
    if is_streamed(rows):
        raise InputError(f"The label column {label!r} of a streamed set must say its class names, and holds {dtype}.")
    if "string" not in dtype and "int" not in dtype and dtype != "bool":
        raise InputError(f"The label column {label!r} holds {dtype} values, and not class names or whole numbers.")
    values = [value for value in rows.unique(label) if value is not None]
    if "string" in dtype:
        return tuple(sorted(values))
    return tuple(str(value) for value in range(max(values, default=-1) + 1))


def _undecoded(rows: Any, image: str, label: str | None) -> Any:
    import datasets

    rows = rows.select_columns([name for name in (image, label) if name])
    try:
        return rows.cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # Arrow's errors are of these kinds
        raise InputError(f"The column {image!r} holds no images.") from error


def _read(columns: dict[str, list], rows: list[int], table: DatasetTable | StreamedTable) -> Chunk:
    def decoded(cell: dict[str, Any] | None, row: int) -> np.ndarray | None:
        with contextlib.suppress(InputError) if table.skip_broken else contextlib.nullcontext():
            return decode(cell, row)

    with ThreadPoolExecutor() as threads:  # Pillow decodes without the interpreter's lock
        images = list(threads.map(decoded, columns[table.image], rows))
    whole = [k for k, image in enumerate(images) if image is not None]
    labels = None if table.label is None else _number_labels(list(columns[table.label]), rows, table.class_names)[whole]
    return [images[k] for k in whole], labels


def _number_labels(labels: list[Any], rows: Iterable[int], class_names: tuple[str, ...]) -> Tensor:
    """Class numbers, int64, shape (rows,), of labels that are names or numbers."""
    _check_labelled(labels, rows)
    number = {name: k for k, name in enumerate(class_names)}
    numbers = [number.get(label) if isinstance(label, str) else int(label) for label in labels]
    strange = [label for label, k in zip(labels, numbers, strict=True) if k not in range(len(class_names))]
    if strange:
        raise InputError(f"The label {strange[0]!r} is none of the {len(class_names)} classes of the training images.")
    return torch.tensor(numbers)


def _check_labelled(labels: list[Any], rows: Iterable[int]) -> None:
    missing = [row for row, label in zip(rows, labels, strict=True) if label is None or label == -1]
    if missing:
        raise InputError(f"{len(missing)} images have no label, row {missing[0]} among them.")


def decode(cell: dict[str, Any] | None, row: int) -> np.ndarray:
    """RGB image of shape (height, width, 3), uint8, from the ``bytes`` or the ``path`` of a cell."""
    import datasets

    if cell is None:
        raise InputError(f"Image {row} is missing.")
    try:
        image = datasets.Image().decode_example(cell)  # upright: cameras store portraits on their side
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # else clipped at 255
            image = Image.fromarray((np.array(image).astype(np.uint32) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError("numbers of 32 bits have no agreed range: save it with 8 or 16 bits")
        if image.mode == "P":  # else Pillow warns of transparent colours
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))
    except Exception as error:  # a broken file can raise almost anything
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        what = f"Image {row} ({cell.get('path') or 'embedded'}) does not decode"
        raise InputError(f"{what}: {reason}. skip_broken (--skip-broken) leaves such images out.") from error
