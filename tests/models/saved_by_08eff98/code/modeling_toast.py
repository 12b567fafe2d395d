"""The saved form: a transformer in which maps stand in for spans of blocks, as a Hugging Face model type of its own.

This file imports torch and transformers alone, and layers.py and parting.py beside it. All three travel in the folder
of every model that toastlib saves: with ``import toastlib``, or without toastlib by ``trust_remote_code=True``,
`AutoModel`, `AutoModelForImageClassification` and `pipeline` open the folder.
"""

import shutil
import tempfile
from pathlib import Path

from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from .layers import CODE, Replacement, build_map
from .parting import Parting, part

FORMAT = 2
"""Raised when older code could no longer read what is written."""
AUTO_MAP = {
    "AutoConfig": "modeling_toast.ToastConfig",
    "AutoModel": "modeling_toast.ToastModel",
    "AutoModelForImageClassification": "modeling_toast.ToastForImageClassification",
}
COMPANIONS = ("README.md", "preprocessor_config.json")
"""Files that go with a model wherever it is saved or pushed to."""


class ToastConfig(PreTrainedConfig):
    """What to build before the weights are read.

    Parameters
    ----------
    base
        Configuration of the model that was made smaller, or its dictionary; ``model_type`` decides the architecture.
    tower
        Where the encoder lies in the base model; ``""`` if it is all of it.
    blocks
        Where the block list lies in the encoder.
    parting
        Where blocks were split into sublayers before spans of these were replaced: the arguments of `Parting`.
    without
        Parts of the encoder that the original has not, such as a pooler without weights.
    spans
        ``{"start": s, "end": e, "map": description}`` for each span: blocks s+1..e are gone, and a map takes the output
        of block s to an approximation of that of block e; see `toastlib.layers.describe_map`.
    features
        What the model hands over as ``pooler_output``: ``"cls"``, ``"mean"`` (of the patches) or ``"pooler"``.
    special_tokens
        Tokens before the patches.
    feature_norm
        Norm of the encoder that is applied to the features alone (CLIP's), or `None`.
    head
        ``"linear"``: a linear layer on the features; ``"base"``: that of the base model; `None`: there is none.
    hidden_size
        Length of the features.
    format
        Of this page.
    """

    model_type = "toast"
    sub_configs = {"base": AutoConfig}  # noqa: RUF012

    def __init__(
        self,
        base=None,
        tower="",
        blocks="",
        parting=None,
        without=(),
        spans=(),
        features="cls",
        special_tokens=1,
        feature_norm=None,
        head=None,
        hidden_size=0,
        format=FORMAT,
        **kwargs,
    ):
        if format > FORMAT:
            raise ValueError(
                f"This model was saved in format {format}, and the code here reads up to {FORMAT}: update toastlib."
            )
        if isinstance(base, dict):
            base = AutoConfig.for_model(**base) if base.get("model_type") else None
        self.base = base
        self.tower = tower
        self.blocks = blocks
        self.parting = parting
        self.without = list(without)
        self.spans = list(spans)
        self.features = features
        self.special_tokens = special_tokens
        self.feature_norm = feature_norm
        self.head = head
        self.hidden_size = hidden_size
        self.format = format
        super().__init__(**kwargs)


def split(blocks, parting):
    """The block list with the attention and the MLP of each block in its place."""
    sublayers = [sublayer for block in blocks for sublayer in part(block, parting)]
    return nn.Sequential(*sublayers) if isinstance(blocks, nn.Sequential) else nn.ModuleList(sublayers)


def shorten(blocks, spans):
    """The block list with one map in place of each span."""
    maps = {span["start"] + 1: span for span in spans}
    removed = {block for span in spans for block in range(span["start"] + 1, span["end"] + 1)}
    kept = [
        Replacement((maps[k]["start"], maps[k]["end"]), build_map(maps[k]["map"])) if k in maps else block
        for k, block in enumerate(blocks)
        if k in maps or k not in removed
    ]
    return nn.Sequential(*kept) if isinstance(blocks, nn.Sequential) else nn.ModuleList(kept)


class ToastPreTrainedModel(PreTrainedModel):
    """Reads every weight or none, and no pickle; takes code, card and preprocessing along when it is saved."""

    config_class = ToastConfig
    base_model_prefix = "toast"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config):
        super().__init__(config)
        if config.base is None:
            raise ValueError("The configuration names no base model: this is not a model that toastlib saved.")
        self.companions = {}

    @classmethod
    def from_pretrained(cls, name, *args, output_loading_info=False, ignore_mismatched_sizes=False, **kwargs):
        """As for any model, but nothing that the file lacks is made up.

        With ``ignore_mismatched_sizes=True`` a classifier that is missing, or for another number of classes, is drawn
        anew: to be trained.

        Raises
        ------
        ValueError
            If weights are missing, left over or of another shape.
        """
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
        model, info = super().from_pretrained(name, *args, **kwargs)
        missing, left_over = set(info["missing_keys"]), set(info["unexpected_keys"])
        missing |= {key for key, *_ in info["mismatched_keys"]}
        if missing and all(key.startswith("classifier.") for key in missing) and not ignore_mismatched_sizes:
            raise ValueError(
                f"The model in {name} has no classifier for {model.config.num_labels} classes: open it by AutoModel, "
                "or pass ignore_mismatched_sizes=True to train a new one."
            )
        if wrong := sorted(key for key in missing | left_over if not key.startswith("classifier.")):
            raise ValueError(
                f"The weights in {name} do not belong to its config.json: {len(wrong)} are missing, left over or of "
                f"another shape, {wrong[0]} among them."
            )
        files = [Path(name) / file for file in COMPANIONS] if name else []
        model.companions = {file.name: file.read_text(encoding="utf-8") for file in files if file.is_file()}
        return (model, info) if output_loading_info else model

    def save_pretrained(self, save_directory, **kwargs):
        """As for any model; the code that opens it, its card and its preprocessing are written beside it."""
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        for file in CODE:
            shutil.copyfile(Path(__file__).with_name(file), folder / file)
        for name, text in self.companions.items():
            (folder / name).write_text(text, encoding="utf-8")

    def push_to_hub(self, repo_id, *, private=None, token=None, **kwargs):
        """Upload all that `save_pretrained` writes; further arguments go to `huggingface_hub.HfApi.upload_folder`."""
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return api.upload_folder(repo_id=repo_id, folder_path=folder, **kwargs)


class ToastModel(ToastPreTrainedModel):
    """The encoder: pixel values to the states of all tokens, and to features as ``pooler_output``."""

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.base = (AutoModelForImageClassification if config.head == "base" else AutoModel).from_config(config.base)
        try:
            blocks = self.tower.get_submodule(config.blocks)
        except AttributeError as error:
            raise ValueError(
                f"The {type(self.tower).__name__} of this transformers has no block list {config.blocks!r}: the model "
                f"was saved with transformers {config.transformers_version}."
            ) from error
        sublayers = split(blocks, Parting(**config.parting)) if config.parting else blocks
        self.tower.set_submodule(config.blocks, shorten(sublayers, config.spans))
        for name in config.without:
            setattr(self.tower, name, None)
        self.post_init()

    @property
    def tower(self):
        """The encoder in the base model."""
        return self.base.get_submodule(self.config.tower)

    def forward(self, pixel_values, **kwargs):
        """States (batch, tokens, width) and features (batch, width) of pixel values (batch, 3, height, width)."""
        output = self.tower(pixel_values, **kwargs)
        return BaseModelOutputWithPooling(output.last_hidden_state, self._pool(output))

    def _pool(self, output):
        if self.config.features == "pooler":
            return output.pooler_output
        hidden = output.last_hidden_state
        tokens = hidden[:, 0] if self.config.features == "cls" else hidden[:, self.config.special_tokens :].mean(1)
        return self.tower.get_submodule(self.config.feature_norm)(tokens) if self.config.feature_norm else tokens


class ToastForImageClassification(ToastPreTrainedModel):
    """The encoder with a classifier: a linear layer on its features, or the base model's own."""

    def __init__(self, config):
        super().__init__(config)
        self.toast = ToastModel(config)
        self.classifier = None if config.head == "base" else nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values, labels=None, **kwargs):
        """Logits (batch, classes) of pixel values (batch, 3, height, width); with labels (batch,), their loss too."""
        if self.classifier is None:
            logits = self.toast.base(pixel_values, **kwargs).logits
        else:
            logits = self.classifier(self.toast(pixel_values, **kwargs).pooler_output)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


def register():
    """Make the Auto classes know the type; transformers does so itself for code that travels in a folder."""
    AutoConfig.register(ToastConfig.model_type, ToastConfig, exist_ok=True)
    AutoModel.register(ToastConfig, ToastModel, exist_ok=True)
    AutoModelForImageClassification.register(ToastConfig, ToastForImageClassification, exist_ok=True)
