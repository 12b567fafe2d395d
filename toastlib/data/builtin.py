"""Embedded sets of images, which need no network: scikit-learn's digits and drawn shapes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw

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


def digits() -> Splits:
    """scikit-learn's 1,797 scanned 8 x 8 digits, always split 1,197 to 600 by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    raw = load_digits()
    images = np.repeat(np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None], 3, axis=-1)
    splits = train_test_split(np.arange(len(images)), test_size=600, random_state=0, stratify=raw.target)
    return tuple(ArrayTable(images[rows], raw.target[rows], tuple("0123456789")) for rows in splits)


def coloured_shapes(train: int = 1080, test: int = 576) -> Splits:
    """Six shapes, nearly upright, in six colours on a dark noisy ground; image i always shows pair ``i mod 36``."""
    generator = np.random.default_rng(1)
    labels = np.arange(train + test) % len(COLOURED_SHAPES)
    images = np.stack([_draw(COLOURED_SHAPES[label], generator) for label in labels])
    return tuple(ArrayTable(images[rows], labels[rows], COLOURED_SHAPES) for rows in (slice(train), slice(train, None)))


def _draw(name: str, generator: np.random.Generator) -> np.ndarray:
    colour, shape = name.split()
    cover = _cover(shape, generator)
    ground = generator.uniform(0, 90)
    shade = COLOURS[colour] + generator.normal(0, 15, 3)
    noisy = ground + generator.normal(0, 12, (SIZE, SIZE, 3))
    return np.clip(noisy * (1 - cover) + shade * cover, 0, 255).astype(np.uint8)


def _cover(shape: str, generator: np.random.Generator) -> np.ndarray:
    """Share of each pixel that the shape covers, (SIZE, SIZE, 1)."""
    size = SIZE * OVERSAMPLING
    mask = Image.new("L", (size, size))
    centre = size / 2 + generator.uniform(-0.1, 0.1, 2) * size
    _paint(ImageDraw.Draw(mask), shape, centre, generator.uniform(0.28, 0.4) * size)
    mask = mask.rotate(generator.uniform(-15, 15), center=tuple(centre)).resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(mask, dtype=float)[..., None] / 255


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


EMBEDDED: dict[str, Callable[[], Splits]] = {"digits": digits, "coloured-shapes": coloured_shapes}
"""Alias -> function that makes its training and test split."""
