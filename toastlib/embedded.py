"""Image sets that need no network: scikit-learn's digits, seen two more ways, and shapes drawn by this page."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from toastlib.sources import ArrayTable, digits

Splits = tuple[ArrayTable, ArrayTable]
SHAPES = ("circle", "ring", "square", "triangle", "cross", "stripes")
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


def _draw_shape(shape: str, draw: np.random.Generator) -> np.ndarray:
    from PIL import Image, ImageDraw

    size = SIZE * OVERSAMPLING
    mask = Image.new("L", (size, size))
    centre = size / 2 + draw.uniform(-0.12, 0.12, 2) * size
    _paint(ImageDraw.Draw(mask), shape, centre, draw.uniform(0.22, 0.36) * size)
    mask = mask.rotate(draw.uniform(0, 360), center=tuple(centre)).resize((SIZE, SIZE), Image.Resampling.BOX)
    ground, colour = _two_colours(draw)
    ground = ground + draw.normal(0, 12, (SIZE, SIZE, 3))
    cover = np.asarray(mask, dtype=float)[..., None] / 255
    return np.clip(ground * (1 - cover) + colour * cover, 0, 255).astype(np.uint8)


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
}
"""Alias -> function that makes its training and test rows."""
