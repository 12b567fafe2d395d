"""Image sets: decoded once to uint8, preprocessed on the device batch by batch."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from toastlib import catalog
from toastlib.embedded import EMBEDDED
from toastlib.errors import InputError
from toastlib.preprocessing import Preprocessing
from toastlib.sources import CHUNK, StreamedTable, Table, open_table

Chunk = tuple[list[np.ndarray], Tensor | None]


@dataclass(frozen=True)
class Images:
    """Images with or without labels, handed out as preprocessed tensors.

    Parameters
    ----------
    pixels
        uint8, shape (n, 3, height, width), on the CPU.
    labels
        int64, shape (n,), or `None`.
    class_names
        One name per class.
    preprocessing
        Applied to every batch on `device`.
    device, dtype
        Of the pixel values that `batches` yields.

    Raises
    ------
    InputError
        If there are not as many labels as images.
    """

    pixels: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.pixels):
            raise InputError(f"There are {len(self.labels)} labels for {len(self.pixels)} images.")

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Any) -> Self:
        """The images of an index tensor, list or slice."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, pixels=self.pixels[rows], labels=labels)

    def sample(self, n: int, seed: int) -> Self:
        """`n` images drawn without replacement.

        Raises
        ------
        InputError
            If there are fewer than `n`.
        """
        return self[_draw(len(self), n, seed)]

    def batches(self, size: int = 32) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield (pixel_values, labels): shapes (batch, 3, height, width) and (batch,), on the device, in order."""
        for start in range(0, len(self), size):
            part = self[start : start + size]
            pixel_values = self.preprocessing(part.pixels.to(self.device), self.dtype)
            yield pixel_values, None if part.labels is None else part.labels.to(self.device)


@dataclass(frozen=True)
class ImageSet:
    """A data set: its images for training (calibration and heads) and for testing.

    Parameters
    ----------
    name
        How it is called in tables.
    train, test
        Training images, which calibration sets are drawn from and heads are trained on, and test images, which
        accuracies are measured on.
    """

    name: str
    train: Images
    test: Images

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class, in the order of the labels."""
        return self.train.class_names


def load_images(
    name: str,
    encoder: Any,
    *,
    train_size: int | None = None,
    test_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    seed: int = 0,
    at_most: bool = False,
) -> ImageSet:
    """Load a data set as the encoder expects its images.

    Parameters
    ----------
    name
        ``"digits"``, ``"digits-parity"``, ``"digits-inverted"`` and ``"shapes"`` are embedded, see `toastlib.embedded`;
        the paper's sets have aliases, see
        `toastlib.catalog.DATASETS`; else a Hub id or a local folder that `datasets.load_dataset` reads.
        ``name:column`` names the label column.
    encoder
        Gives preprocessing, device and dtype.
    train_size, test_size
        How many images to draw from each split; all of them if `None` or 0. A set that is streamed, such as
        ``"imagenet-1k"``, needs both.
    image_column, label_column
        Column names; found from the column types if `None`.
    seed
        Of the draw, and of the split where the set has no test split.
    at_most
        Take all images of a split that has fewer than its size, rather than refuse it.

    Returns
    -------
    ImageSet
        Its images are decoded to uint8 and kept on the CPU; batches are preprocessed on the encoder's device.

    Raises
    ------
    InputError
        If the set is unknown, cannot be fetched, has no such columns, too few rows, or an image that does not
        decode (the message names it).
    """
    if encoder.preprocessing is None:
        raise InputError(f"{encoder.name} does not say how its images are preprocessed: pass preprocessing=...")
    if name in EMBEDDED:
        train, test = EMBEDDED[name]()
    else:
        entry = catalog.dataset_entry(name)
        train, test = open_table(entry, image_column, label_column, seed)

    sized = {"train": (train, train_size), "test": (test, test_size)}
    for split, (table, size) in sized.items():
        if isinstance(table, StreamedTable) and (size or 0) <= 0:
            raise InputError(f"{name!r} is streamed: say how many images to draw, for example {split}_size=3000.")

    def load(split: str) -> Images:
        table, size = sized[split]
        if at_most and size and not isinstance(table, StreamedTable):
            size = min(size, len(table))
        try:
            chunks = _draw_chunks(table, size, seed)
        except InputError as error:
            raise InputError(f"The {split} split of {name!r} is too small: {error}") from None
        pixels, labels, preprocessing = _collect(chunks, encoder.preprocessing)
        if size and len(pixels) < size and not at_most:  # the end of a stream comes unforeseen
            raise InputError(f"The {split} split of {name!r} is too small: it has {len(pixels)} of {size} images.")
        return Images(pixels, labels, table.class_names, preprocessing, encoder.device, encoder.dtype)

    alias = catalog.dataset_alias(f"{name}:{label_column}" if label_column else name)
    return ImageSet(alias, load("train"), load("test"))


def _draw(available: int, n: int, seed: int) -> Tensor:
    if not 0 <= n <= available:
        raise InputError(f"{n} images were asked for, and there are {available}.")
    return torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:n]


def _draw_chunks(table: Table | StreamedTable, size: int | None, seed: int) -> Iterator[Chunk]:
    """Images and labels of the rows drawn, `CHUNK` at a time."""
    if isinstance(table, StreamedTable):
        return table.draw(size, seed)
    rows = (_draw(len(table), size, seed) if size else torch.arange(len(table))).tolist()
    return (table.read(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK))


def _collect(chunks: Iterator[Chunk], preprocessing: Preprocessing) -> tuple[Tensor, Tensor | None, Preprocessing]:
    """Pixels, labels, and what is left to do with the pixels."""
    stacks, labels = [], []
    for images, numbers in chunks:
        stacks.append(_stack(images, preprocessing))
        labels.append(numbers)
    if not stacks:
        raise InputError("There are no images.")
    if len({(pixels.shape[1:], rest) for pixels, rest in stacks}) > 1:
        stacks = [(rest.resized(pixels), _finished(rest)) for pixels, rest in stacks]
    pixels = torch.cat([pixels for pixels, _ in stacks])
    return pixels, None if labels[0] is None else torch.cat(labels), stacks[0][1]


def _stack(images: list[np.ndarray], preprocessing: Preprocessing) -> tuple[Tensor, Preprocessing]:
    """Stack (height, width, 3) arrays, and what is left to do with them.

    Images that share one size keep it. Others, and those that resizing makes smaller, are resized here: what is kept
    in memory does not depend on how large photographs are.
    """
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].contiguous() for image in images]
    same = len({image.shape for image in tensors}) == 1
    if same and tensors[0].numel() <= preprocessing.resized(tensors[0]).numel():
        return torch.cat(tensors), preprocessing
    return torch.cat([preprocessing.resized(image) for image in tensors]), _finished(preprocessing)


def _finished(preprocessing: Preprocessing) -> Preprocessing:
    return replace(preprocessing, resize=None, crop=None)
