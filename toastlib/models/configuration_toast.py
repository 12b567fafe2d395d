"""The configuration of the saved form, which names the original's, its blocks, and the maps in place of spans.

This file imports transformers, and layers.py beside it; it travels in the folder of every model that toastlib saves.
"""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from .layers import shorten_config

FORMAT = 3  # version of the format; raised when older code could not read new folders


class ToastConfig(PreTrainedConfig):
    """Configuration of the model that is built before the weights are read.

    Its `head` is ``"linear"``, a linear layer on the features; or the base model's own: ``"base"`` classifies images,
    ``"sequence"`` texts, and ``"causal"`` predicts tokens. `None`: no head.
    """

    model_type = "toast"
    sub_configs = {"base": AutoConfig}  # noqa: RUF012

    base: Any = None  # configuration of the original model, or its dictionary; `model_type` decides the architecture
    tower: str = ""  # dotted path of the encoder in the base model; "" if the two are one
    blocks: str = ""  # dotted path of the block list in the encoder
    parting: dict | None = None  # arguments of `SublayerSplit` if the blocks were split into sublayers
    without: Sequence = ()  # names of the architecture's parts that the encoder lacks, such as a pooler without weights
    spans: Sequence = ()  # {"start": s, "end": e, "map": description} for each span, see `describe_map`
    features: str = "cls"  # of `pooler_output`: "cls", "mean" (of the patches), "last" (of a decoder) or "pooler"
    special_tokens: int = 1  # number of tokens before the patches, or before the other tokens of a text
    feature_norm: str | None = None  # norm of the encoder that is applied to the features alone (CLIP's)
    head: str | None = None
    hidden_size: int = 0  # length of the features
    reads: str = "pixel_values"  # the main input, or "input_ids" of a text
    is_causal: bool = False  # true of a decoder
    block_outputs: int = 0  # length of the tuple that a block returns; 0 if it returns hidden states alone
    format: int = FORMAT  # version of this configuration's format

    def __post_init__(self, **kwargs):
        if self.format > FORMAT:
            raise ValueError(
                f"This model was saved in format {self.format}, and the code here reads up to {FORMAT}: "
                "update toastlib."
            )
        if isinstance(self.base, dict):
            self.base = AutoConfig.for_model(**self.base) if self.base.get("model_type") else None
        super().__post_init__(**kwargs)

    @property
    def kept(self):
        """The block of the original that each block, sublayer or map that is left stands for; a map its first one."""
        parts = 2 if self.parting else 1
        gone = {block for span in self.spans for block in range(span["start"] + 2, span["end"] + 1)}
        return [k // parts for k in range(self._tower.num_hidden_layers * parts) if k not in gone]

    @property
    def num_hidden_layers(self):
        """Number of blocks that are left, each map counted as one; of sublayers if the blocks were split."""
        return len(self.kept)

    def get_text_config(self, *args, **kwargs):
        """The base's, of the blocks that are left: a cache has a layer for each, which holds what that block sees."""
        if self.base is None or self.reads != "input_ids":
            return super().get_text_config(*args, **kwargs)
        config = copy.deepcopy(self.base)
        shorten_config(config, self.kept)
        return config

    @property
    def image_size(self):
        """Height and width of the images in pixels."""
        return self._tower.image_size

    @property
    def patch_size(self):
        """Height and width of a patch in pixels."""
        return self._tower.patch_size

    @property
    def _tower(self):
        return getattr(self.base, "vision_config", self.base)
