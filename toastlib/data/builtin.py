"""Image sets that need no network: scikit-learn's digits, seen two more ways, and shapes drawn by this page."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from toastlib.data.sources import ArrayTable, digits

Splits = tuple[ArrayTable, ArrayTable]
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


def digits_inverted() -> Splits:
    """The digits black on white: the same content, other pixel statistics."""
    return tuple(replace(split, images=255 - split.images) for split in digits())


def shapes(train: int = 1200, test: int = 600) -> Splits:
    """Six shapes of random colour, place, size and angle on a noisy ground of another colour; not photographs.

    Drawn afresh at every call, always the same: image i shows shape ``i mod 6``.
    """
    draw = np.random.default_rng(0)
    labels = np.arange(train + test) % len(SHAPES)
    images = np.stack([_draw_shape(SHAPES[label], draw) for label in labels])
    rows = slice(None, train), slice(train, None)
    return tuple(ArrayTable(images[part], labels[part], SHAPES) for part in rows)


def coloured_shapes(train: int = 1080, test: int = 576) -> Splits:
    """The six shapes, nearly upright, in six named colours on a dark noisy ground; not photographs.

    The 36 classes are the pairs, such as ``"red circle"``, so that each colour and each shape is in six of them. Image
    i is of class ``i mod 36``.
    """
    draw = np.random.default_rng(1)
    labels = np.arange(train + test) % len(COLOURED_SHAPES)
    images = np.stack([_draw_coloured_shape(*COLOURED_SHAPES[label].split(), draw) for label in labels])
    rows = slice(None, train), slice(train, None)
    return tuple(ArrayTable(images[part], labels[part], COLOURED_SHAPES) for part in rows)


def _draw_shape(shape: str, draw: np.random.Generator) -> np.ndarray:
    cover = _cover(shape, draw, place=0.12, radius=(0.22, 0.36), angle=(0, 360))
    ground, colour = _two_colours(draw)
    return _painted(cover, ground, colour, draw)


def _draw_coloured_shape(colour: str, shape: str, draw: np.random.Generator) -> np.ndarray:
    cover = _cover(shape, draw, place=0.1, radius=(0.28, 0.4), angle=(-15, 15))
    return _painted(cover, draw.uniform(0, 90), COLOURS[colour] + draw.normal(0, 15, 3), draw)


def _cover(
    shape: str, draw: np.random.Generator, place: float, radius: tuple[float, float], angle: tuple[float, float]
) -> np.ndarray:
    """How much of each pixel the shape covers, (SIZE, SIZE, 1) in [0, 1]; lengths are shares of the image's size."""
    from PIL import Image, ImageDraw

    size = SIZE * OVERSAMPLING
    mask = Image.new("L", (size, size))
    centre = size / 2 + draw.uniform(-place, place, 2) * size
    _paint(ImageDraw.Draw(mask), shape, centre, draw.uniform(*radius) * size)
    mask = mask.rotate(draw.uniform(*angle), center=tuple(centre)).resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(mask, dtype=float)[..., None] / 255


def _painted(
    cover: np.ndarray, ground: np.ndarray | float, colour: np.ndarray, draw: np.random.Generator
) -> np.ndarray:
    noisy = ground + draw.normal(0, 12, (SIZE, SIZE, 3))
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
        for offset in (-0.75, 0, 0.75):
            pen.line(
                (x - radius, y + offset * radius, x + radius, y + offset * radius), fill=255, width=int(radius * 0.3)
            )


def _two_colours(draw: np.random.Generator) -> np.ndarray:
    """Two colours whose brightness differs clearly."""
    while True:
        colours = draw.uniform(0, 255, (2, 3))
        if abs(np.diff(colours.mean(1))[0]) > 60:
            return colours


EMBEDDED: dict[str, Callable[[], Splits]] = {
    "digits": digits,
    "digits-parity": lambda: digits(parity=True),
    "digits-inverted": digits_inverted,
    "shapes": shapes,
    "coloured-shapes": coloured_shapes,
}
"""Alias -> function that makes its training and test rows."""
