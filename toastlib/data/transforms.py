"""Images as the checkpoint expects them: the processor's resize, crop and normalisation, on any device."""

import warnings
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from toastlib.errors import InputError

MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
"""PIL's resampling codes that `torch.nn.functional.interpolate` computes alike."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1] and normalise, like the image processor of a checkpoint.

    Parameters
    ----------
    resize
        (height, width) in pixels, or the length of the shorter edge, or `None` to leave the size alone.
    crop
        (height, width) of the centre crop after the resize, or `None`.
    mode
        ``"bilinear"``, ``"bicubic"`` (both antialiased) or ``"nearest-exact"``.
    scale
        Factor from uint8 to float.
    mean, std
        One value per channel, subtracted and divided after scaling.
    """

    resize: tuple[int, int] | int | None = None
    crop: tuple[int, int] | None = None
    mode: str = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Read the contents of a ``preprocessor_config.json``."""
        size = config.get("size", {})
        mode = MODES.get(config.get("resample", 2))
        if mode is None:
            warnings.warn(f"Resampling code {config['resample']} is not available here; bicubic is used.", stacklevel=2)
        normalise = config.get("do_normalize", True)
        return cls(
            resize=_edges(size) if config.get("do_resize", True) else None,
            crop=_edges(config["crop_size"]) if config.get("do_center_crop") else None,
            mode=mode or "bicubic",
            scale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
            mean=tuple(config["image_mean"]) if normalise else (0.0, 0.0, 0.0),
            std=tuple(config["image_std"]) if normalise else (1.0, 1.0, 1.0),
        )

    def to_config(self) -> dict[str, Any]:
        """The contents of a ``preprocessor_config.json``; CLIP's processor is the one that knows all these steps."""
        resize, crop = self.resize, self.crop

        def edges(size: tuple[int, int]) -> dict[str, int]:
            return {"height": size[0], "width": size[1]}

        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": resize is not None,
            "size": {"shortest_edge": resize} if isinstance(resize, int) else edges(resize or (224, 224)),
            "resample": {mode: code for code, mode in MODES.items()}[self.mode],
            "do_center_crop": crop is not None,
            "crop_size": edges(crop or (224, 224)),
            "do_rescale": True,
            "rescale_factor": self.scale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def resized(self, images: Tensor) -> Tensor:
        """Resize and crop uint8 images of shape (batch, 3, height, width), staying in uint8."""
        if self.resize is not None:
            size = self._target(*images.shape[-2:])
            if size != tuple(images.shape[-2:]):
                smooth = self.mode != "nearest-exact"
                images = interpolate(images, size, mode=self.mode, antialias=smooth)
        return images if self.crop is None else _centre_crop(images, *self.crop)

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Pixel values of uint8 images.

        Parameters
        ----------
        images
            uint8, shape (batch, 3, height, width), on any device.
        dtype
            Of the result; the arithmetic is float32.

        Returns
        -------
        Tensor
            Shape (batch, 3, new height, new width).
        """
        mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self.mean, self.std))
        return ((self.resized(images).float() * self.scale - mean) / std).to(dtype)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if not isinstance(self.resize, int):
            return self.resize
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize


def image_size(preprocessing: Preprocessing | None, config: Any) -> tuple[int, int]:
    """Height and width of the images that a model is given: those of the preprocessing, if it fixes them."""
    size = preprocessing and (preprocessing.crop or preprocessing.resize)
    size = size or getattr(config, "image_size", 224)
    return (size, size) if isinstance(size, int) else tuple(size)


def _edges(size: Any) -> tuple[int, int] | int:
    """Any way to write a size in a processor's configuration, as (height, width) or the shorter edge."""
    if isinstance(size, int):
        return size, size
    if "height" in size:
        return size["height"], size["width"]
    if "shortest_edge" in size:
        return size["shortest_edge"]
    raise InputError(f"Image size {dict(size)} is not understood: it has height and width, or shortest_edge.")


def _centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    if top < 0 or left < 0:
        raise InputError(f"Cannot crop {height} x {width} from images of {tuple(images.shape[-2:])} pixels.")
    return images[..., top : top + height, left : left + width]
