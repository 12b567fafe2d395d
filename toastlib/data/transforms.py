"""Images as a checkpoint expects them: stacked as uint8; resized, cropped and normalised on any device."""

import math
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from toastlib.errors import InputError, real_number, unknown, whole_number

MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
"""PIL's resampling code -> the mode of `torch.nn.functional.interpolate` that computes the same."""
OTHER_STEPS = ("crop_pct", "rescale_offset", "do_flip_channel_order", "do_pad", "keep_aspect_ratio", "do_thumbnail")
IN_MEMORY = 2 * 2**30  # bytes of pixels; more lie in a memory-mapped file
Chunk = tuple[list[np.ndarray], Tensor | None]
"""RGB images of shape (height, width, 3), uint8, and their labels."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1] and normalise, as the image processor of a checkpoint does.

    Parameters
    ----------
    resize, mode
        (height, width) in pixels, or the length of the shorter edge, or `None`; resampled by ``"bilinear"`` or
        ``"bicubic"`` (both antialiased) or ``"nearest-exact"``.
    crop
        (height, width) of the centre crop after the resize; no crop if `None`.
    scale, mean, std
        Pixel values are ``(pixels * scale - mean) / std``, with a mean and std per channel.

    Raises
    ------
    InputError
        If a size, the mode or a number is none.
    """

    resize: tuple[int, int] | int | None = None
    crop: tuple[int, int] | None = None
    mode: str = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            edges = size if isinstance(size, tuple | list) else (size,) * (name == "resize" and size is not None)
            if len(edges) > 2 or (size is not None and not edges) or (name == "crop" and len(edges) == 1):
                raise InputError(f"{name} has a height and a width, not {size!r}.")
            for edge in edges:
                whole_number(name, edge, least=1)
        if self.mode not in MODES.values():
            raise unknown("mode", self.mode, MODES.values())
        real_number("scale", self.scale, above=0)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple | list) or len(values) != 3:
                raise InputError(f"{name} has a number for each of the three channels, not {values!r}.")
            for value in values:
                real_number(name, value, above=0 if name == "std" else -math.inf)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read the contents of a ``preprocessor_config.json``.

        Raises
        ------
        InputError
            If a size is not understood, or images are normalised by a mean or a deviation that it does not name.
        """
        size = config.get("size", {})
        mode = MODES.get(config.get("resample", 2))
        if mode is None:
            warnings.warn(f"Resampling code {config['resample']} is not available here; bicubic is used.", stacklevel=2)
        normalise = config.get("do_normalize", True)
        if strange := [step for step in OTHER_STEPS if config.get(step)]:
            raise InputError(f"The image processor has a step that is not done here: {strange[0]}.")
        for key in ("image_mean", "image_std") if normalise else ():
            if not config.get(key):
                kind = config.get("image_processor_type", "The image processor")
                raise InputError(f"{kind} normalises, and names no {key}: add it to preprocessor_config.json.")
        return cls(
            resize=_edges(size) if config.get("do_resize", True) else None,
            crop=_edges(config["crop_size"]) if config.get("do_center_crop") else None,
            mode=mode or "bicubic",
            scale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
            mean=tuple(config["image_mean"]) if normalise else (0.0, 0.0, 0.0),
            std=tuple(config["image_std"]) if normalise else (1.0, 1.0, 1.0),
        )

    def to_config(self) -> dict[str, Any]:
        """The contents of a ``preprocessor_config.json``; CLIP's processor is the one that has all these steps."""
        size, crop = self.resize or (224, 224), self.crop or (224, 224)  # processors ask for sizes that they do not use
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": self.resize is not None,
            "size": {"shortest_edge": size} if isinstance(size, int) else {"height": size[0], "width": size[1]},
            "resample": {mode: code for code, mode in MODES.items()}[self.mode],
            "do_center_crop": self.crop is not None,
            "crop_size": {"height": crop[0], "width": crop[1]},
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def at(self, size: int) -> Self:
        """The same steps for square images of `size` pixels: resize and crop keep their proportion."""
        if self.crop is None:
            return replace(self, resize=(size, size))
        share = size / self.crop[0]
        edges = [self.resize] if isinstance(self.resize, int) else self.resize or ()
        scaled = tuple(max(size, round(edge * share)) for edge in edges)
        resize = scaled[0] if isinstance(self.resize, int) else scaled or None
        return replace(self, resize=resize, crop=(size, size))

    def resized(self, images: Tensor) -> Tensor:
        """Resize and crop uint8 images of shape (batch, 3, height, width); the result is uint8 too."""
        height, width = images.shape[-2:]
        size = self.resize or (height, width)
        if isinstance(size, int):  # of the shorter edge
            size = (size, int(size * width / height)) if height <= width else (int(size * height / width), size)
        if size != (height, width):
            images = interpolate(images, size, mode=self.mode, antialias=self.mode != "nearest-exact")
        return images if self.crop is None else _centre_crop(images, *self.crop)

    def __call__(
        self, images: Tensor, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Pixel values on `device` of uint8 images, both of shape (batch, 3, height, width); the arithmetic is float32.

        The images are resized on the CPU: elsewhere PyTorch resizes floats alone, which gives other pixels.
        """
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (self.mean, self.std))
        pixels = self.resized(images)
        if torch.device(device).type == "cuda":
            pixels = pixels.pin_memory()  # so that the copy waits for nothing
        return ((pixels.to(device, non_blocking=True).float() * self.scale - mean) / std).to(dtype)


def image_size(preprocessing: Preprocessing | None, config: Any) -> tuple[int, int]:
    """Height and width of a model's input images: those of the preprocessing, else those of the configuration."""
    size = preprocessing and (preprocessing.crop or preprocessing.resize)
    size = size or getattr(getattr(config, "vision_config", config), "image_size", 224)
    return (size, size) if isinstance(size, int) else tuple(size)


def _edges(size: Any) -> tuple[int, int] | int:
    """(height, width) or the shorter edge, from any form of a size in a processor's configuration."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return tuple(size)
    if set(size) == {"height", "width"}:
        return size["height"], size["width"]
    if set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    raise InputError(f"Image size {size} is not understood: it has height and width, or shortest_edge alone.")


def _centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    if top < 0 or left < 0:
        raise InputError(f"Cannot crop {height} x {width} from images of {tuple(images.shape[-2:])} pixels.")
    return images[..., top : top + height, left : left + width]


def stack_chunks(
    chunks: Iterable[Chunk], count: int, preprocessing: Preprocessing
) -> tuple[Tensor, Tensor | None, Preprocessing]:
    """Stack at most `count` images; those of several sizes, and those that a resize makes smaller, are resized at once.

    Returns pixels, uint8, shape (images, 3, height, width); labels; and the preprocessing that is left to do.
    """
    pixels, rest, labels, filled = None, preprocessing, [], 0
    for images, chunk_labels in chunks:
        if not images:  # all of them were left out
            continue
        chunk = [torch.from_numpy(image).permute(2, 0, 1)[None].contiguous() for image in images]
        sizes = {image.shape[1:] for image in (chunk if pixels is None else [pixels, *chunk])}
        if rest == preprocessing and (len(sizes) > 1 or chunk[0].numel() > preprocessing.resized(chunk[0]).numel()):
            rest = replace(preprocessing, resize=None, crop=None)
            pixels = None if pixels is None else _resize_filled(pixels, preprocessing, filled)
        if rest != preprocessing:
            chunk = [preprocessing.resized(image) for image in chunk]
        if pixels is None:
            pixels = _allocate(count, chunk[0].shape[1:])
        shapes = {tuple(image.shape[2:]) for image in (pixels[:1], *chunk)}
        if len(shapes) > 1:
            (a, b), (c, d) = sorted(shapes)[:2]
            raise InputError(
                f"Images of {a} x {b} and {c} x {d} pixels cannot be stacked: the preprocessing resizes the shorter "
                "edge alone. Give it a crop, or a height and a width."
            )
        pixels[filled : filled + len(chunk)] = torch.cat(chunk)
        filled += len(chunk)
        labels.append(chunk_labels)
    if pixels is None:
        raise InputError("There are no images.")
    return pixels[:filled], None if labels[0] is None else torch.cat(labels), rest


def _resize_filled(pixels: Tensor, preprocessing: Preprocessing, filled: int) -> Tensor:
    """Newly allocated pixels for as many images, the first `filled` of them resized."""
    resized = _allocate(len(pixels), preprocessing.resized(pixels[:1]).shape[1:])
    for old, new in zip(pixels[:filled].split(64), resized[:filled].split(64), strict=True):
        new.copy_(preprocessing.resized(old))
    return resized


def _allocate(count: int, shape: torch.Size) -> Tensor:
    """Uninitialised uint8 pixels; from `IN_MEMORY` bytes on in a memory-mapped temporary file, already unlinked."""
    size = count * shape.numel()
    if size < IN_MEMORY:
        return torch.empty(count, *shape, dtype=torch.uint8)
    with tempfile.TemporaryDirectory(prefix="toastlib-", ignore_cleanup_errors=True) as folder:
        file = str(Path(folder) / "pixels")
        return torch.from_file(file, shared=True, size=size, dtype=torch.uint8).view(count, *shape)
