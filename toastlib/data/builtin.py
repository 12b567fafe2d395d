"""Embedded sets of images, which need no network: scikit-learn's digits, two variants of them, and drawn shapes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from toastlib.data.transforms import Chunk

SHAPES = ("circle", "ring", "square", "triangle", "cross", "stripes")
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 60, 220),
    "yellow": (235, 215, 40),
    "purple": (150, 40, 180),
    "white": (240, 240, 240),
}
COLOURED_SHAPES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
SIZE = 32  # pixels
OVERSAMPLING = 4  # drawn this much larger, then reduced: smooth edges


Range = tuple[float, float]
Generator = np.random.Generator


@dataclass(frozen=True)
class ArrayTable:
    """A split that is in memory: images, uint8, shape (n, height, width, 3), and labels, int64, shape (n,)."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, rows: list[int]) -> Chunk:
        """Images and labels of these rows."""
        return list(self.images[rows]), torch.as_tensor(self.labels[rows])


Splits = tuple[ArrayTable, ArrayTable]


def digits(parity: bool = False) -> Splits:
    """scikit-learn's 1,797 scanned 8 x 8 digits, always split 1,197 to 600 by class; with `parity`, even or odd."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images = np.repeat(np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None], 3, axis=-1)
    labels = raw.target % 2 if parity else raw.target
    names = ("even", "odd") if parity else tuple("0123456789")
    splits = train_test_split(np.arange(len(images)), test_size=600, random_state=0, stratify=raw.target)
    return tuple(ArrayTable(images[rows], labels[rows], names) for rows in splits)


def digits_inverted() -> Splits:
    """The digits black on white: the same content, other pixel statistics."""
    return tuple(replace(split, images=255 - split.images) for split in digits())


def shapes(train: int = 1200, test: int = 600) -> Splits:
    """Six shapes of random colour, place, size and angle on a noisy ground; image i always shows shape ``i mod 6``."""
    return _draw_splits(SHAPES, _draw_shape, train, test, seed=0)


def coloured_shapes(train: int = 1080, test: int = 576) -> Splits:
    """The six shapes, nearly upright, in six colours on a dark noisy ground; image i always shows pair ``i mod 36``."""
    return _draw_splits(COLOURED_SHAPES, _draw_coloured_shape, train, test, seed=1)


def _draw_splits(names: tuple[str, ...], draw: Callable, train: int, test: int, seed: int) -> Splits:
    generator = np.random.default_rng(seed)
    labels = np.arange(train + test) % len(names)
    images = np.stack([draw(names[label], generator) for label in labels])
    return tuple(ArrayTable(images[rows], labels[rows], names) for rows in (slice(train), slice(train, None)))


def _draw_shape(name: str, generator: Generator) -> np.ndarray:
    cover = _cover(name, generator, place=0.12, radius=(0.22, 0.36), angle=(0, 360))
    ground, colour = _two_colours(generator)
    return _on_noise(cover, ground, colour, generator)


def _draw_coloured_shape(name: str, generator: Generator) -> np.ndarray:
    colour, shape = name.split()
    cover = _cover(shape, generator, place=0.1, radius=(0.28, 0.4), angle=(-15, 15))
    return _on_noise(cover, generator.uniform(0, 90), COLOURS[colour] + generator.normal(0, 15, 3), generator)


def _cover(shape: str, generator: Generator, *, place: float, radius: Range, angle: Range) -> np.ndarray:
    """Share of each pixel that the shape covers, (SIZE, SIZE, 1); `place` and `radius` are shares of the size."""
    from PIL import Image, ImageDraw

    size = SIZE * OVERSAMPLING
    mask = Image.new("L", (size, size))
    centre = size / 2 + generator.uniform(-place, place, 2) * size
    _paint(ImageDraw.Draw(mask), shape, centre, generator.uniform(*radius) * size)
    mask = mask.rotate(generator.uniform(*angle), center=tuple(centre)).resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(mask, dtype=float)[..., None] / 255


def _on_noise(cover: np.ndarray, ground: Any, colour: np.ndarray, generator: Generator) -> np.ndarray:
    noisy = ground + generator.normal(0, 12, (SIZE, SIZE, 3))
    return np.clip(noisy * (1 - cover) + colour * cover, 0, 255).astype(np.uint8)


def _paint(pen, shape: str, centre: np.ndarray, radius: float) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=255)
    elif shape == "ring":
        pen.ellipse(box, outline=255, width=int(radius * 0.4))
    elif shape == "square":
        pen.rectangle(box, fill=255)
    elif shape == "triangle":
        pen.regular_polygon((x, y, radius), 3, fill=255)
    elif shape == "cross":
        pen.line((x - radius, y, x + radius, y), fill=255, width=int(radius * 0.5))
        pen.line((x, y - radius, x, y + radius), fill=255, width=int(radius * 0.5))
    else:
        for level in (y - 0.75 * radius, y, y + 0.75 * radius):
            pen.line((x - radius, level, x + radius, level), fill=255, width=int(radius * 0.3))


def _two_colours(generator: Generator) -> np.ndarray:
    """Two colours whose brightness differs clearly."""
    while True:
        colours = generator.uniform(0, 255, (2, 3))
        if abs(np.diff(colours.mean(1))[0]) > 60:
            return colours


EMBEDDED: dict[str, Callable[[], Splits]] = {
    "digits": digits,
    "digits-parity": lambda: digits(parity=True),
    "digits-inverted": digits_inverted,
    "shapes": shapes,
    "coloured-shapes": coloured_shapes,
}
"""Alias -> function that makes its training and test split."""
