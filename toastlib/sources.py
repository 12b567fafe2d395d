"""Where images come from: scikit-learn's digits, the Hub, and local folders, as tables of rows."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from toastlib.catalog import DatasetEntry
from toastlib.errors import InputError, unknown

COLUMN_NAMES = {"image": ("image", "img"), "label": ("label", "labels", "class", "target")}
"""What columns are called where no column's type says that it holds images or classes."""


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
        part = self.rows.select(rows)
        images = [_decode(cell, row) for cell, row in zip(part[self.image], rows, strict=True)]
        if self.label is None:
            return images, None
        labels = list(part[self.label])
        _check_labelled(labels, rows)
        number = {name: k for k, name in enumerate(self.class_names)}
        numbers = [number.get(label) if isinstance(label, str) else int(label) for label in labels]
        classes = len(self.class_names)
        strange = [label for label, k in zip(labels, numbers, strict=True) if k not in range(classes)]
        if strange:
            raise InputError(f"The label {strange[0]!r} is none of the {classes} classes of the training images.")
        return images, torch.tensor(numbers)


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
) -> tuple[DatasetTable, DatasetTable]:
    """Train and test rows of a Hub data set or a local folder.

    A set without a test split lends a fifth of its rows, by class where it has labels.
    """
    splits = _load_splits(entry.path)
    if "train" not in splits:
        raise InputError(f"{entry.path} has no split 'train', only {', '.join(splits)}.")
    features = splits["train"].features
    image = _find_column(image or entry.image, features, _is_image, "image", entry.path)
    label = _find_column(label or entry.label, features, _is_label, "label", entry.path)
    test = next((name for name in (entry.test, "test", "validation") if name in splits), None)
    names = _class_names(splits["train"], label)
    parts = (splits["train"], splits[test]) if test else _split(splits["train"], label, seed, entry.path)
    return tuple(_undecoded(part, image, label, names) for part in parts)


def _split(rows: Any, label: str | None, seed: int, path: str) -> list[Any]:
    from sklearn.model_selection import train_test_split

    labels = None if label is None else list(rows[label])
    if labels:
        _check_labelled(labels, range(len(rows)))
    try:
        parts = train_test_split(range(len(rows)), test_size=0.2, random_state=seed, stratify=labels)
    except ValueError as error:
        few = f"its {len(rows)} rows, or those of a class, are too few to lend some"
        raise InputError(f"{path} has no split 'test', and {few}.") from error
    return [rows.select(part) for part in parts]


def _load_splits(path: str) -> Any:
    import datasets

    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(path)
    except Exception as error:  # the library raises a dozen kinds, from its own and from its network client
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"Data set {path!r} cannot be loaded; 'digits' needs no network. ({reason})") from error
    finally:
        if not bars:
            datasets.enable_progress_bars()


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image"


def _is_label(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel"


def _find_column(name: str | None, features: Any, fits: Any, kind: str, path: str) -> str | None:
    if name is not None:
        if name not in features:
            raise unknown(f"{kind} column", name, features)
        return name
    found = [column for column, feature in features.items() if fits(feature)]
    found = found or [column for column in COLUMN_NAMES[kind] if column in features]
    if len(found) > 1:
        raise InputError(
            f"{path} has the {kind} columns {', '.join(found)}: name one"
            + (f", for example '{path}:{found[-1]}'." if kind == "label" else " by image_column=...")
        )
    if not found and kind == "image":
        raise InputError(f"{path} has no image column, only {', '.join(features)}.")
    return found[0] if found else None


def _class_names(rows: Any, label: str | None) -> tuple[str, ...]:
    if label is None:
        return ()
    feature = rows.features[label]
    if _is_label(feature):
        return tuple(feature.names)
    dtype = getattr(feature, "dtype", type(feature).__name__)
    if "string" not in dtype and "int" not in dtype and dtype != "bool":
        raise InputError(f"The label column {label!r} holds {dtype} values, and not class names or whole numbers.")
    values = [value for value in rows.unique(label) if value is not None]
    if "string" in dtype:
        return tuple(sorted(values))
    return tuple(str(value) for value in range(max(values, default=-1) + 1))


def _check_labelled(labels: list[Any], rows: Iterable[int]) -> None:
    missing = [row for row, label in zip(rows, labels, strict=True) if label is None or label == -1]
    if missing:
        raise InputError(f"{len(missing)} images have no label, row {missing[0]} among them.")


def _undecoded(rows: Any, image: str, label: str | None, names: tuple[str, ...]) -> DatasetTable:
    import datasets

    try:
        return DatasetTable(rows.cast_column(image, datasets.Image(decode=False)), image, label, names)
    except (TypeError, ValueError, NotImplementedError) as error:  # Arrow's errors are of these kinds
        raise InputError(f"The column {image!r} holds no images.") from error


def _decode(cell: dict[str, Any] | None, row: int) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    if cell is None:
        raise InputError(f"Image {row} is missing.")
    try:
        source = io.BytesIO(cell["bytes"]) if cell.get("bytes") is not None else cell["path"]
        with Image.open(source) as image:
            return _rgb(image)
    except Exception as error:  # a broken file can raise almost anything
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"Image {row} ({cell.get('path') or 'embedded'}) does not decode: {reason}") from error


def _rgb(image: Any) -> np.ndarray:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)  # as `datasets` does: cameras store portraits on their side
    if image.mode == "I;16":  # else clipped at 255
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # else Pillow warns of transparent colours
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
