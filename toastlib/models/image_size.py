"""Encoders for images of another size: their position embeddings are interpolated once, as transformers does."""

import torch
from torch import nn

from toastlib.errors import InputError

ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")
"""Model types that interpolate at every call, or need no position embeddings."""
INTERPOLATED = ("vit", "deit", "clip_vision_model", "siglip_vision_model")
"""Model types whose embeddings are made anew for another size."""


@torch.no_grad()
def set_image_size(model: nn.Module, size: int) -> None:
    """Let a model read square images of another size, in pixels; its configuration follows, and saved folders do too.

    An `InputError` if the size is no multiple of the patch size, or the type is not in `ANY_SIZE` or `INTERPOLATED`.
    """
    kind = model.config.model_type
    if kind not in ANY_SIZE + INTERPOLATED:
        types = ", ".join(ANY_SIZE + INTERPOLATED)
        raise InputError(f"Models of type {kind} read images of one size only; {types} read others.")
    patch = model.config.patch_size
    if size < patch or size % patch:
        near = max(patch, round(size / patch) * patch)
        raise InputError(f"An image of {size} pixels has no whole patches of {patch} pixels: take {near}.")
    if kind in ANY_SIZE or size == model.config.image_size:
        return
    embeddings = model.embeddings
    model.config.image_size = size
    model.embeddings = type(embeddings)(model.config).eval().requires_grad_(False)
    weights, shapes = embeddings.state_dict(), {k: v.shape for k, v in model.embeddings.state_dict().items()}
    [name] = [name for name, shape in shapes.items() if shape != weights[name].shape]
    tokens, width = shapes[name][-2:]
    interpolated = embeddings.interpolate_pos_encoding(torch.empty(1, tokens, width), size, size)
    model.embeddings.load_state_dict(weights | {name: interpolated.reshape(shapes[name])})
