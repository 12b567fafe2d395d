"""Sets of images: decoded once to uint8, preprocessed on the device batch by batch."""

import base64
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor

from toastlib.data import catalog
from toastlib.data.builtin import EMBEDDED, ArrayTable
from toastlib.data.sources import CHUNK, DatasetTable, StreamedTable, open_table
from toastlib.data.transforms import Preprocessing, stack_chunks
from toastlib.errors import InputError, need, unknown, whole_number

Table = ArrayTable | DatasetTable | StreamedTable
T, R = TypeVar("T"), TypeVar("R")
Shard = tuple[int, int]  # (k, n): every n-th image, from the k-th on


@dataclass(frozen=True)
class Images:
    """Images with or without labels, which `batches` preprocesses.

    Parameters
    ----------
    pixels
        uint8, shape (n, 3, height, width), on the CPU.
    labels, class_names
        int64, shape (n,), or `None`; and one name per class.
    preprocessing, device, dtype
        Resize, crop and normalisation of each batch; device and dtype of the pixel values.

    Raises
    ------
    InputError
        If pixels or labels are of another shape or dtype, their numbers differ, or a label is none of the classes.
    """

    pixels: Tensor
    labels: Tensor | None
    class_names: tuple[str, ...]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        pixels, labels = self.pixels, self.labels
        if not _is(pixels, torch.uint8, 4) or pixels.shape[1] != 3:
            raise InputError(f"Pixels are uint8 (0 to 255), of shape (images, 3, height, width), not {_kind(pixels)}.")
        if labels is None:
            return
        if not _is(labels, torch.int64, 1):
            raise InputError(f"Labels are int64, of shape (images,), not {_kind(labels)}.")
        if len(labels) != len(pixels):
            raise InputError(f"There are {len(labels)} labels for {len(pixels)} images.")
        if strange := labels[(labels < 0) | (labels >= len(self.class_names))].tolist():
            raise InputError(f"Label {strange[0]} is none of the {len(self.class_names)} classes, which count from 0.")

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        labels = "without labels" if self.labels is None else f"of {len(self.class_names)} classes"
        return f"Images({len(self):,} of {self.pixels.shape[2]} x {self.pixels.shape[3]} pixels, {labels})"

    def __getitem__(self, index: Any) -> Self:
        """The images of a slice, list or index tensor."""
        return replace(self, pixels=self.pixels[index], labels=None if self.labels is None else self.labels[index])

    @property
    def cache_key_parts(self) -> tuple[Any, ...]:
        """Everything that features depend on, for `fingerprint`."""
        return self.pixels, self.preprocessing, self.dtype

    def sample(self, n: int, seed: int) -> Self:
        """`n` images drawn without replacement; `InputError` if there are fewer."""
        return self[draw_rows(len(self), n, seed)]

    def batches(self, size: int = 32) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield (pixel values, labels) on the device: shapes (batch, 3, height, width) and (batch,)."""
        whole_number("batch_size", size, least=1)

        def batch(start: int) -> tuple[Tensor, Tensor | None]:
            part = self[start : start + size]
            pixel_values = self.preprocessing(part.pixels, self.dtype, self.device)
            return pixel_values, None if part.labels is None else part.labels.to(self.device)

        starts = range(0, len(self), size)
        return one_ahead(batch, starts) if self.device.type == "cuda" else map(batch, starts)


def one_ahead(make: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """What `make` gives for each item, in order; a thread makes the next while the one before is used."""
    with ThreadPoolExecutor(1) as thread:
        ahead = None
        for item in items:
            ahead, ready = thread.submit(make, item), ahead
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()


def _is(value: Any, dtype: torch.dtype, dimensions: int) -> bool:
    return isinstance(value, Tensor) and value.dtype == dtype and value.ndim == dimensions


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"


@dataclass(frozen=True)
class ImageSet:
    """Images for training and for testing.

    Parameters
    ----------
    name, train, test
        Name in tables; images for calibration and heads; images that accuracies are measured on.

    Raises
    ------
    InputError
        If both have labels, and number their classes differently.
    """

    name: str
    train: Images
    test: Images

    def __post_init__(self) -> None:
        labelled = self.train.labels is not None and self.test.labels is not None
        if labelled and tuple(self.train.class_names) != tuple(self.test.class_names):
            raise InputError(f"The classes of {self.name} are not the same, or in another order, in training and test.")

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
    seed: int = 0,
    at_most: bool = False,
    skip_broken: bool = False,
) -> ImageSet:
    """Load a set of images as an encoder expects them.

    Parameters
    ----------
    name
        An alias of `DATASETS`, such as ``"digits"`` or ``"mnist-mini"`` (embedded), a Hub id, or a folder that
        `datasets.load_dataset` reads. ``name:column`` names the label column.
    encoder
        Encoder that the images are for: its preprocessing, device and dtype are used.
    train_size, test_size
        Number of images drawn from each split; all if `None` or 0. Streamed sets, such as ``"imagenet-1k"``, need both.
    image_column, seed
        Column of the images, found by type and name if `None`; seed of the draw, and of the split if there is no test
        split.
    at_most, skip_broken
        Take all images of a split that has fewer than asked for, instead of refusing it; leave out images that do not
        decode, and warn how many there are, instead of refusing the first.

    Returns
    -------
    ImageSet
        Decoded images, uint8, on the CPU.

    Raises
    ------
    InputError
        If the encoder has no preprocessing for images; if the set is unknown, cannot be fetched, lacks the columns or
        has too few rows; or if an image does not decode (the message names it).
    """
    need(encoder, "preprocessing", "An Encoder, such as load_encoder returns,")
    sizes = {"train": train_size, "test": test_size}
    for split, size in sizes.items():
        whole_number(f"{split}_size", size or 0)
    tables = _open(name, encoder, sizes, image_column, seed, skip_broken)
    train, test = (_load(name, split, tables[split], encoder, size, seed, at_most) for split, size in sizes.items())
    return ImageSet(catalog.dataset_alias(name), train, test)


def load_split(
    name: str, encoder: Any, split: str, *, size: int | None = None, seed: int = 0, shard: Shard = (0, 1)
) -> Images:
    """Load `size` images of the ``"train"`` or ``"test"`` split as `load_images` does, or a shard of them alone."""
    if split not in ("train", "test"):
        raise unknown("split", split, ("train", "test"))
    table = _open(name, encoder, {split: size}, None, seed)[split]
    return _load(name, split, table, encoder, size, seed, shard=shard)


def _open(
    name: str, encoder: Any, sizes: dict[str, int | None], column: str | None, seed: int, skip_broken: bool = False
) -> dict[str, Table]:
    """Both splits, undecoded; images will be drawn from those that `sizes` has."""
    if getattr(encoder, "reads_text", False):
        raise InputError(f"{encoder.name} reads texts, and not images: load them by load_texts.")
    if encoder.preprocessing is None:
        raise InputError(f"{encoder.name} does not say how its images are preprocessed: pass preprocessing=...")
    if name in EMBEDDED and column:
        raise InputError(f"{name!r} is embedded and has no column {column!r}: leave out image_column.")
    entry = catalog.dataset_entry(name)
    make = EMBEDDED.get(name) or entry.make
    splits = make() if make else open_table(entry, column, seed, skip_broken)
    tables = dict(zip(("train", "test"), splits, strict=True))
    for split, size in sizes.items():
        if isinstance(tables[split], StreamedTable) and (size or 0) <= 0:
            raise InputError(f"{name!r} is streamed: say how many images to draw, for example {split}_size=3000.")
    return tables


def _load(
    name: str, split: str, table: Table, encoder: Any, size: int | None, seed: int, at_most=False, shard: Shard = (0, 1)
) -> Images:
    """A shard of the rows drawn from a split, decoded `CHUNK` at a time."""
    title, is_streamed = f"The {split} split of {name!r}", isinstance(table, StreamedTable)
    if is_streamed:
        chunks = table.draw(size, seed, shard)
    else:
        size = min(size, len(table)) if at_most and size else size
        try:
            rows = draw_rows(len(table), size, seed) if size else torch.arange(len(table))
        except InputError as error:
            raise InputError(f"{title} is too small: {error}") from None
        chunks = (table.read(part.tolist()) for part in rows[shard[0] :: shard[1]].split(CHUNK))
    expected = len(range(size or len(table))[shard[0] :: shard[1]])
    pixels, labels, preprocessing = stack_chunks(chunks, expected, encoder.preprocessing)
    if len(pixels) and len(pixels) < expected and getattr(table, "skip_broken", False):
        ended = ", or the stream ended" if is_streamed else ""
        broken = f"{expected - len(pixels)} of {expected} images do not decode and are left out{ended}"
        warnings.warn(f"{title}: {broken}.", stacklevel=4)
    elif len(pixels) < expected and not at_most:  # the length of a stream is not known before its end
        raise InputError(f"{title} is too small: it has {len(pixels)} of {expected} images.")
    return Images(pixels, labels, table.class_names, preprocessing, encoder.device, encoder.dtype)


def picture_url(pixels: Tensor, edge: int) -> str:
    """An image, uint8, (3, height, width), as the address of a PNG that lies in the page; at most `edge` pixels."""
    image = Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())
    image.thumbnail((edge, edge))
    image.save(file := io.BytesIO(), "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def draw_rows(available: int, n: int, seed: int, *, kind: str = "images") -> Tensor:
    """`n` different row numbers in random order, int64, shape (n,); refused if fewer are available."""
    whole_number(f"The number of {kind}", n)
    whole_number("seed", seed)
    if n > available:
        raise InputError(f"{n} {kind} were asked for, and there are {available}.")
    return torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:n]
