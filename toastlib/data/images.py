"""Image sets: decoded once to uint8, preprocessed on the device batch by batch."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from toastlib.data import catalog
from toastlib.data.builtin import EMBEDDED
from toastlib.data.sources import CHUNK, StreamedTable, Table, open_table
from toastlib.data.stacking import Chunk, stack_chunks
from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError, unknown


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

    @property
    def cache_key_parts(self) -> tuple[Any, ...]:
        """All that features depend on, for `toastlib.cache.fingerprint`."""
        return self.pixels, self.preprocessing, self.dtype

    def sample(self, n: int, seed: int) -> Self:
        """`n` images drawn without replacement.

        Raises
        ------
        InputError
            If there are fewer than `n`.
        """
        return self[draw_rows(len(self), n, seed)]

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
        ``"digits"``, ``"digits-parity"``, ``"digits-inverted"`` and ``"shapes"`` are embedded;
        the paper's sets have aliases, see `DATASETS`; else a Hub id or a folder that `datasets.load_dataset` reads.
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
    name_of_column = f"{name}:{label_column}" if label_column else name
    sizes = {"train": train_size, "test": test_size}
    tables = _open(name, encoder, sizes, image_column, label_column, seed)
    train, test = (_load(name, split, tables[split], sizes[split], encoder, seed, at_most) for split in sizes)
    return ImageSet(catalog.dataset_alias(name_of_column), train, test)


def load_split(
    name: str, encoder: Any, split: str, *, size: int | None = None, seed: int = 0, shard: tuple[int, int] = (0, 1)
) -> Images:
    """Load one split of a data set, or one shard of it: nothing else is decoded.

    Parameters
    ----------
    name, encoder, seed
        As for `load_images`.
    split
        ``"train"`` or ``"test"``.
    size
        As `train_size` and `test_size` of `load_images`; the images are the same ones in the same order.
    shard
        ``(k, n)``: every n-th of these images, from the k-th on.

    Raises
    ------
    InputError
        As `load_images`, or if there are fewer images than shards.
    """
    sizes = {split: size}
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    table = _open(name, encoder, sizes, None, None, seed)[split]
    return _load(name, split, table, size, encoder, seed, shard=shard)


def _open(
    name: str,
    encoder: Any,
    sizes: dict[str, int | None],
    image_column: str | None,
    label_column: str | None,
    seed: int,
) -> dict[str, Table | StreamedTable]:
    """The rows of both splits, undecoded; `sizes` says how many of which splits will be drawn."""
    if getattr(encoder, "reads_text", False):
        raise InputError(f"{encoder.name} reads texts, and not images: load them by load_texts.")
    if encoder.preprocessing is None:
        raise InputError(f"{encoder.name} does not say how its images are preprocessed: pass preprocessing=...")
    if name in EMBEDDED:
        train, test = EMBEDDED[name]()
    else:
        train, test = open_table(catalog.dataset_entry(name), image_column, label_column, seed)
    tables = {"train": train, "test": test}
    for split, size in sizes.items():
        if isinstance(tables[split], StreamedTable) and (size or 0) <= 0:
            raise InputError(f"{name!r} is streamed: say how many images to draw, for example {split}_size=3000.")
    return tables


def _load(
    name: str,
    split: str,
    table: Table | StreamedTable,
    size: int | None,
    encoder: Any,
    seed: int,
    at_most: bool = False,
    shard: tuple[int, int] = (0, 1),
) -> Images:
    if at_most and size and not isinstance(table, StreamedTable):
        size = min(size, len(table))
    try:
        chunks = _draw_chunks(table, size, seed, shard)
    except InputError as error:
        raise InputError(f"The {split} split of {name!r} is too small: {error}") from None
    expected = len(range(size or len(table))[shard[0] :: shard[1]])
    pixels, labels, preprocessing = stack_chunks(chunks, expected, encoder.preprocessing)
    if len(pixels) < expected and not at_most:  # the end of a stream comes unforeseen
        raise InputError(f"The {split} split of {name!r} is too small: it has {len(pixels)} of {expected} images.")
    return Images(pixels, labels, table.class_names, preprocessing, encoder.device, encoder.dtype)


def draw_rows(available: int, n: int, seed: int, kind: str = "images") -> Tensor:
    """`n` different row numbers in random order, int64.

    Raises
    ------
    InputError
        If there are fewer rows.
    """
    if not 0 <= n <= available:
        raise InputError(f"{n} {kind} were asked for, and there are {available}.")
    return torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:n]


def _draw_chunks(
    table: Table | StreamedTable, size: int | None, seed: int, shard: tuple[int, int] = (0, 1)
) -> Iterator[Chunk]:
    """Images and labels of the rows drawn, or of a shard of them, `CHUNK` at a time."""
    if isinstance(table, StreamedTable):
        return table.draw(size, seed, shard)
    rows = (draw_rows(len(table), size, seed) if size else torch.arange(len(table)))[shard[0] :: shard[1]].tolist()
    return (table.read(rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK))
