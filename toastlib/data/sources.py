"""Where images and texts come from: scikit-learn's digits, the Hub, and local folders, as tables of rows."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from toastlib.data.catalog import DatasetEntry
from toastlib.data.columns import class_names, find_column, is_image, is_label, is_streamed
from toastlib.data.decoding import check_labelled, decode, number_labels
from toastlib.data.hub import not_loaded
from toastlib.errors import InputError

STREAM_FROM = 10e9
"""Bytes of download above which a Hub set is streamed."""
BUFFER = 1000
"""Rows among which a stream is shuffled; they are held undecoded."""
CHUNK = 64
"""Rows that are decoded at a time."""


class Table(Protocol):
    """Rows of one split; decoding happens in `read`, for the rows asked for only."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def read(self, rows: list[int]) -> tuple[list[np.ndarray], Tensor | None]:
        """RGB images as uint8 (height, width, 3) arrays, and labels of shape (rows,)."""
        ...


@dataclass(frozen=True)
class ArrayTable:
    """Images that are in memory: uint8 (n, height, width, 3), labels (n,)."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: list[int]) -> tuple[list[np.ndarray], Tensor]:
        """See `Table.read`."""
        return list(self.images[rows]), torch.as_tensor(self.labels[rows])


@dataclass(frozen=True)
class DatasetTable:
    """A split of a `datasets.Dataset` whose image column is not decoded."""

    rows: Any
    image: str
    label: str | None
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: list[int]) -> tuple[list[np.ndarray], Tensor | None]:
        """See `Table.read`.

        Raises
        ------
        InputError
            If an image does not decode, or a label is missing or not one of the classes.
        """
        return _read(self.rows.select(rows)[:], rows, self)


@dataclass(frozen=True)
class StreamedTable:
    """A split of a `datasets.IterableDataset`: rows are fetched as they are drawn, and nothing else is.

    `fifths` says which rows of every five, counted along the shuffled stream, are of this split: a set without a test
    split lends every fifth, and for one seed the two never overlap.
    """

    rows: Any
    image: str
    label: str | None
    class_names: tuple[str, ...]
    path: str
    fifths: range = range(5)

    def draw(
        self, n: int, seed: int, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[tuple[list[np.ndarray], Tensor | None]]:
        """Images and labels of `n` rows drawn without replacement (fewer where the stream ends), `CHUNK` at a time.

        Of these, a `shard` (k, n) decodes every n-th, from the k-th on.

        Files come in random order, ten side by side, and rows at random from the next `BUFFER`: a small draw reads the
        beginnings of a few files, and is as mixed as they are.

        Raises
        ------
        InputError
            If the Hub fails, an image does not decode, or a label is missing or not one of the classes.
        """
        stream = enumerate(self.rows.shuffle(seed=seed, buffer_size=BUFFER))
        drawn = enumerate(islice((row for k, row in stream if k % 5 in self.fifths), n))
        drawn = islice(drawn, shard[0], None, shard[1])
        while chunk := self._fetch(drawn):
            columns = {name: [row[name] for _, row in chunk] for name in (self.image, self.label) if name}
            yield _read(columns, [k for k, _ in chunk], self)

    def _fetch(self, drawn: Iterator[tuple[int, dict[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
        try:
            return list(islice(drawn, CHUNK))
        except Exception as error:  # of the library or of its network client
            raise not_loaded("data set", self.path, error, "digits") from error


def _read(
    columns: dict[str, list], rows: list[int], table: DatasetTable | StreamedTable
) -> tuple[list[np.ndarray], Tensor | None]:
    with ThreadPoolExecutor() as threads:  # Pillow decodes without the interpreter's lock
        images = list(threads.map(decode, columns[table.image], rows))
    if table.label is None:
        return images, None
    return images, number_labels(list(columns[table.label]), rows, table.class_names)


def digits(parity: bool = False) -> tuple[ArrayTable, ArrayTable]:
    """scikit-learn's 1,797 real 8 x 8 digits, split 1,197 to 600 by class, the same at every call.

    With `parity` the labels are coarse: even or odd.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    pixels = np.round(raw.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(pixels[..., None], 3, axis=-1)
    rows = train_test_split(np.arange(len(images)), test_size=600, random_state=0, stratify=raw.target)
    labels = raw.target % 2 if parity else raw.target
    names = ("even", "odd") if parity else tuple(map(str, range(10)))
    return tuple(ArrayTable(images[part], labels[part], names) for part in rows)


def open_table(
    entry: DatasetEntry, image: str | None, label: str | None, seed: int
) -> tuple[DatasetTable | StreamedTable, DatasetTable | StreamedTable]:
    """Train and test rows of a Hub data set or a local folder.

    A set without a test split lends a fifth of its rows, by class where it has labels. Hub sets larger than
    `STREAM_FROM` are not downloaded but streamed.
    """
    rows, test_rows = _open_splits(entry)
    image = find_column(image or entry.image, rows.features, is_image, "image", entry.path)
    label = find_column(label or entry.label, rows.features, is_label, "label", entry.path)
    names = class_names(rows, label)
    if is_streamed(rows):
        shares = (range(4), range(4, 5)) if test_rows is None else (range(5), range(5))
        parts = zip((rows, rows if test_rows is None else test_rows), shares, strict=True)
        return tuple(
            StreamedTable(_undecoded(part, image, label), image, label, names, entry.path, share)
            for part, share in parts
        )
    parts = _split(rows, label, seed, entry.path) if test_rows is None else (rows, test_rows)
    return tuple(DatasetTable(_undecoded(part, image, label), image, label, names) for part in parts)


@dataclass(frozen=True)
class TextTable:
    """Texts of one split, and labels of shape (texts,)."""

    texts: list[str]
    labels: Tensor | None
    class_names: tuple[str, ...]


def open_texts(entry: DatasetEntry, text: str | None, label: str | None, seed: int) -> tuple[TextTable, TextTable]:
    """Train and test texts of a Hub data set or a local folder; splits as for `open_table`, but nothing is streamed."""
    rows, test_rows = _open_splits(entry)
    if is_streamed(rows):
        raise InputError(f"{entry.path} takes more than {STREAM_FROM / 1e9:.0f} GB: only images are streamed.")
    text = find_column(text or entry.text, rows.features, lambda feature: False, "text", entry.path)
    label = find_column(label or entry.label, rows.features, is_label, "label", entry.path)
    names = class_names(rows, label)

    def table(part: Any) -> TextTable:
        labels = None if label is None else number_labels(list(part[label]), range(len(part)), names)
        return TextTable([cell or "" for cell in part[text]], labels, names)

    parts = _split(rows, label, seed, entry.path) if test_rows is None else (rows, test_rows)
    return tuple(table(part) for part in parts)


def _split(rows: Any, label: str | None, seed: int, path: str) -> list[Any]:
    from sklearn.model_selection import train_test_split

    labels = None if label is None else list(rows[label])
    if labels:
        check_labelled(labels, range(len(rows)))
    try:
        parts = train_test_split(range(len(rows)), test_size=0.2, random_state=seed, stratify=labels)
    except ValueError as error:
        few = f"its {len(rows)} rows, or those of a class, are too few to lend some"
        raise InputError(f"{path} has no split 'test', and {few}.") from error
    return [rows.select(part) for part in parts]


def _open_splits(entry: DatasetEntry) -> tuple[Any, Any | None]:
    """Training rows, and test rows if the set has them apart."""
    splits = _load_splits(entry)
    if entry.train not in splits:
        raise InputError(f"{entry.path} has no split {entry.train!r}, only {', '.join(splits)}.")
    test = next((name for name in (entry.test, "test", "validation") if name in splits), entry.train)
    return splits[entry.train], None if test == entry.train else splits[test]


def _load_splits(entry: DatasetEntry) -> Any:
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        large = entry.streamed or _is_large(entry.path, entry.config)
        return datasets.load_dataset(entry.path, *filter(None, [entry.config]), streaming=large)
    except Exception as error:  # the library raises a dozen kinds, from its own and from its network client
        raise not_loaded("data set", entry.path, error, "digits") from error
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _is_large(path: str, config: str | None = None) -> bool:
    """Whether the Hub says that the set is larger than `STREAM_FROM`; what is here already is never streamed."""
    import datasets

    return (
        not Path(path).is_dir()
        and (datasets.load_dataset_builder(path, *filter(None, [config])).info.download_size or 0) > STREAM_FROM
    )


def _undecoded(rows: Any, image: str, label: str | None) -> Any:
    import datasets

    rows = rows.select_columns([name for name in (image, label) if name])
    try:
        return rows.cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, NotImplementedError) as error:  # Arrow's errors are of these kinds
        raise InputError(f"The column {image!r} holds no images.") from error
