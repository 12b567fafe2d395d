"""Decoded images as one tensor of pixels: in memory, or in a file where they are many."""

import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from toastlib.data.transforms import Preprocessing
from toastlib.errors import InputError

Chunk = tuple[list[np.ndarray], Tensor | None]
"""RGB images of shape (height, width, 3), uint8, and their labels."""
IN_MEMORY = 2 * 2**30
"""Bytes of pixels from which on they lie in a file, which the system reads back as batches ask for them."""


def stack_chunks(
    chunks: Iterable[Chunk], count: int, preprocessing: Preprocessing
) -> tuple[Tensor, Tensor | None, Preprocessing]:
    """Stack images as they are decoded; those that share one size keep it, if resizing makes them no smaller.

    Others are resized here: how large photographs are does not matter.

    Parameters
    ----------
    chunks
        Images and labels.
    count
        How many images there will be at most.
    preprocessing
        What has to happen to them.

    Returns
    -------
    tuple
        Pixels, uint8, shape (images, 3, height, width); labels; and what of the preprocessing is left to do.

    Raises
    ------
    InputError
        If there are none.
    """
    pixels, rest, labels, done = None, preprocessing, [], 0
    for images, numbers in chunks:
        stack, left = _stack(images, preprocessing)
        if pixels is not None and (stack.shape[1:], left) != (pixels.shape[1:], rest):
            stack, left = left.resized(stack), _finished(left)
            if rest != left:
                pixels, rest = _resized(pixels, rest, done), left
        if pixels is None:
            pixels, rest = _room(count, stack.shape[1:]), left
        pixels[done : done + len(stack)] = stack
        done += len(stack)
        labels.append(numbers)
    if pixels is None:
        raise InputError("There are no images.")
    return pixels[:done], None if labels[0] is None else torch.cat(labels), rest


def _room(count: int, shape: torch.Size) -> Tensor:
    """Pixels to be filled. A file of theirs is nameless: it is gone with the tensor."""
    size = count * shape.numel()
    if size < IN_MEMORY:
        return torch.empty(count, *shape, dtype=torch.uint8)
    with tempfile.TemporaryDirectory(prefix="toastlib-", ignore_cleanup_errors=True) as folder:
        file = str(Path(folder) / "pixels")
        return torch.from_file(file, shared=True, size=size, dtype=torch.uint8).view(count, *shape)


def _resized(pixels: Tensor, rest: Preprocessing, done: int) -> Tensor:
    """The images so far as resizing leaves them, in a room of their own."""
    resized = None
    for start in range(0, done, 64):
        part = rest.resized(pixels[start : min(start + 64, done)])
        resized = _room(len(pixels), part.shape[1:]) if resized is None else resized
        resized[start : start + len(part)] = part
    return resized


def _stack(images: list[np.ndarray], preprocessing: Preprocessing) -> tuple[Tensor, Preprocessing]:
    """Images of a chunk, and what is left to do with them."""
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].contiguous() for image in images]
    same = len({image.shape for image in tensors}) == 1
    if same and tensors[0].numel() <= preprocessing.resized(tensors[0]).numel():
        return torch.cat(tensors), preprocessing
    return torch.cat([preprocessing.resized(image) for image in tensors]), _finished(preprocessing)


def _finished(preprocessing: Preprocessing) -> Preprocessing:
    return replace(preprocessing, resize=None, crop=None)
