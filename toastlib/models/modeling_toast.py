"""The saved form: a transformer with maps in place of spans of blocks, as a Hugging Face model type of its own.

This file imports torch, transformers, and layers.py and sublayer_split.py beside it. All three travel in the folder
of every model that toastlib saves: with ``import toastlib``, or without toastlib by ``trust_remote_code=True``,
`AutoModel`, `AutoModelForImageClassification` and `pipeline` open the folder.
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from .layers import CODE, Replacement, build_map
from .sublayer_split import SublayerSplit, split_block

FORMAT = 2
"""Version of the format; raised when older code could not read new folders."""
AUTO_MAP = {
    "AutoConfig": "modeling_toast.ToastConfig",
    "AutoModel": "modeling_toast.ToastModel",
    "AutoModelForImageClassification": "modeling_toast.ToastForImageClassification",
}
COMPANIONS = ("README.md", "preprocessor_config.json")
"""Files that are copied wherever the model is saved or pushed to."""


class ToastConfig(PreTrainedConfig):
    """Configuration of the model that is built before the weights are read.

    Parameters
    ----------
    base
        Configuration of the original model, or its dictionary; ``model_type`` decides the architecture.
    tower
        Dotted path of the encoder in the base model; ``""`` if the two are one.
    blocks
        Dotted path of the block list in the encoder.
    parting
        Arguments of `SublayerSplit` if the blocks were split into sublayers.
    without
        Names of the architecture's parts that the encoder lacks, such as a pooler without weights.
    spans
        ``{"start": s, "end": e, "map": description}`` for each span, see `describe_map`.
    features
        Kind of ``pooler_output``: ``"cls"``, ``"mean"`` (of the patches) or ``"pooler"``.
    special_tokens
        Number of tokens before the patches.
    feature_norm
        Norm of the encoder that is applied to the features alone (CLIP's), or `None`.
    head
        ``"linear"``: a linear layer on the features; ``"base"``: the base model's classifier; `None`: no classifier.
    hidden_size
        Length of the features.
    format
        Version of this configuration's format.
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

    @property
    def num_hidden_layers(self):
        """Number of blocks that are left, each map counted as one; of sublayers if the blocks were split."""
        blocks = self._vision.num_hidden_layers * (2 if self.parting else 1)
        return blocks - sum(span["end"] - span["start"] - 1 for span in self.spans)

    @property
    def image_size(self):
        """Height and width of the images in pixels."""
        return self._vision.image_size

    @property
    def patch_size(self):
        """Height and width of a patch in pixels."""
        return self._vision.patch_size

    @property
    def _vision(self):
        return getattr(self.base, "vision_config", self.base)


def split_blocks(blocks, split):
    """The block list with attention and MLP in place of each block."""
    sublayers = [sublayer for block in blocks for sublayer in split_block(block, split)]
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
    """Reads all weights or none, and no pickle; saves code, card and preprocessing with them."""

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
        """As for any model, but weights that are missing, left over or of another shape raise `ValueError`.

        With ``ignore_mismatched_sizes=True`` a classifier that is missing, or for another number of classes, is random.
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
        """As for any model, with the code that opens it, its card and its preprocessing."""
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
    """The encoder: pixel values to ``last_hidden_state`` and features as ``pooler_output``."""

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
        sublayers = split_blocks(blocks, SublayerSplit(**config.parting)) if config.parting else blocks
        self.tower.set_submodule(config.blocks, shorten(sublayers, config.spans))
        for name in config.without:
            setattr(self.tower, name, None)
        self.post_init()

    @property
    def tower(self):
        """The encoder in the base model."""
        return self.base.get_submodule(self.config.tower)

    def get_input_embeddings(self):
        """The tower's."""
        return self.tower.get_input_embeddings()

    def forward(self, pixel_values, output_hidden_states=None, return_dict=None, **kwargs):
        """Hidden states (batch, tokens, width) and features (batch, width) of pixels (batch, 3, height, width).

        ``output_hidden_states`` adds the input of the first block and the output of every block and map,
        ``output_attentions`` the attentions of the blocks.
        """
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with self._recorded(wanted) as hidden_states:
            output = self.tower(pixel_values, **kwargs)
        states = tuple(hidden_states) if wanted else None
        attentions = output.get("attentions")
        whole = BaseModelOutputWithPooling(output.last_hidden_state, self._pool(output), states, attentions)
        return whole if (self.config.return_dict if return_dict is None else return_dict) else whole.to_tuple()

    @contextlib.contextmanager
    def _recorded(self, wanted):
        """Record the hidden states before and after every module of the block list, if they are wanted."""
        states, hooks = [], []
        if wanted:
            blocks = self.tower.get_submodule(self.config.blocks)
            hooks = [block.register_forward_hook(lambda m, args, output: states.append(output)) for block in blocks]
            hooks.append(blocks[0].register_forward_pre_hook(lambda m, args: states.append(args[0])))
        with contextlib.ExitStack() as stack:
            for hook in hooks:
                stack.callback(hook.remove)
            yield states

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

    def get_input_embeddings(self):
        """The encoder's."""
        return self.toast.get_input_embeddings()

    def forward(self, pixel_values, labels=None, output_hidden_states=None, return_dict=None, **kwargs):
        """Logits (batch, classes) of pixel values (batch, 3, height, width); with labels, their loss too.

        The loss is that of ``config.problem_type``. Hidden states and attentions as of the encoder.
        """
        if self.classifier is None:
            wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            with self.toast._recorded(wanted) as hidden_states:
                output = self.toast.base(pixel_values, **kwargs)
            logits, states = output.logits, tuple(hidden_states) if wanted else None
        else:
            output = self.toast(pixel_values, output_hidden_states, True, **kwargs)
            logits, states = self.classifier(output.pooler_output), output.hidden_states
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        whole = ImageClassifierOutput(loss, logits, states, output.get("attentions"))
        return whole if (self.config.return_dict if return_dict is None else return_dict) else whole.to_tuple()


def register():
    """Register the type with the Auto classes; for code in a saved folder transformers does so itself."""
    AutoConfig.register(ToastConfig.model_type, ToastConfig, exist_ok=True)
    AutoModel.register(ToastConfig, ToastModel, exist_ok=True)
    AutoModelForImageClassification.register(ToastConfig, ToastForImageClassification, exist_ok=True)
