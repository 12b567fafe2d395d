"""Cells of a data set's columns as RGB images and class numbers."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from toastlib.errors import InputError


def decode(cell: dict[str, Any] | None, row: int) -> np.ndarray:
    """RGB image of shape (height, width, 3), uint8, from the ``bytes`` or the ``path`` of a cell.

    Raises
    ------
    InputError
        If the cell is empty or is no image; the message names the row.
    """
    from PIL import Image, UnidentifiedImageError

    if cell is None:
        raise InputError(f"Image {row} is missing.")
    try:
        with Image.open(io.BytesIO(_content(cell))) as image:
            return _rgb(image)
    except Exception as error:  # a broken file can raise almost anything
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise InputError(f"Image {row} ({cell.get('path') or 'embedded'}) does not decode: {reason}") from error


def number_labels(labels: list[Any], rows: Iterable[int], class_names: tuple[str, ...]) -> Tensor:
    """Class numbers, int64, shape (rows,), of labels that are names or numbers.

    Raises
    ------
    InputError
        If a label is missing, or is not one of the classes.
    """
    check_labelled(labels, rows)
    number = {name: k for k, name in enumerate(class_names)}
    numbers = [number.get(label) if isinstance(label, str) else int(label) for label in labels]
    strange = [label for label, k in zip(labels, numbers, strict=True) if k not in range(len(class_names))]
    if strange:
        raise InputError(f"The label {strange[0]!r} is none of the {len(class_names)} classes of the training images.")
    return torch.tensor(numbers)


def check_labelled(labels: list[Any], rows: Iterable[int]) -> None:
    """Refuse missing labels, naming the first row that has none."""
    missing = [row for row, label in zip(rows, labels, strict=True) if label is None or label == -1]
    if missing:
        raise InputError(f"{len(missing)} images have no label, row {missing[0]} among them.")


def _content(cell: dict[str, Any]) -> bytes:
    import fsspec

    if cell.get("bytes") is not None:
        return cell["bytes"]
    with fsspec.open(cell["path"]) as file:  # a file here, or on the Hub where a set of single files is streamed
        return file.read()


def _rgb(image: Any) -> np.ndarray:
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)  # as `datasets` does: cameras store portraits on their side
    if image.mode == "I;16":  # else clipped at 255
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.mode == "P":  # else Pillow warns of transparent colours
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))
