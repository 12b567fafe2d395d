"""The saved form: a transformer with maps in place of spans of blocks, as a Hugging Face model type of its own.

This file imports torch, transformers, and the other files of `CODE` beside it, which travel in every saved folder: the
Auto classes and `pipeline` open it after ``import toastlib``, or without toastlib by ``trust_remote_code=True``.
"""

import contextlib
import copy
import inspect
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput

from .configuration_toast import ToastConfig
from .layers import CODE, build_map, number_blocks, padding_known, pool_text, shorten, shorten_config
from .sublayer_split import SublayerSplit, split_block

AUTO_MAP = {
    "AutoConfig": "configuration_toast.ToastConfig",
    "AutoModel": "modeling_toast.ToastModel",
    "AutoModelForImageClassification": "modeling_toast.ToastForImageClassification",
    "AutoModelForSequenceClassification": "modeling_toast.ToastForSequenceClassification",
    "AutoModelForCausalLM": "modeling_toast.ToastForCausalLM",
}
BASES = {
    "base": transformers.AutoModelForImageClassification,
    "sequence": transformers.AutoModelForSequenceClassification,
    "causal": transformers.AutoModelForCausalLM,
}
"""Head that belongs to the base model -> the class that builds both."""
COMPANIONS = ("README.md", "preprocessor_config.json")  # files that are copied wherever the model is saved or pushed to


def split_blocks(blocks, split):
    """The block list with attention and MLP in place of each block."""
    sublayers = [sublayer for block in blocks for sublayer in split_block(block, split)]
    return nn.Sequential(*sublayers) if isinstance(blocks, nn.Sequential) else nn.ModuleList(sublayers)


class ToastPreTrainedModel(PreTrainedModel):
    """Reads all weights or none, and no pickle; saves code, card and preprocessing with them."""

    config_class = ToastConfig
    base_model_prefix = "toast"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    opens, opens_inputs = (), "pixel_values"  # kinds of head, of any model if there are none; and its main input
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config):
        super().__init__(config)
        if config.base is None:
            raise ValueError("The configuration names no base model: this is not a model that toastlib saved.")
        if self.opens and (config.head not in self.opens or config.reads != self.opens_inputs):
            saved = (config.architectures or ["model with another head"])[0]
            raise ValueError(f"This is no {type(self).__name__} but a {saved}: take the Auto class of that.")
        self.companions, self.main_input_name = {}, config.reads

    def get_input_embeddings(self):
        """The tower's."""
        return getattr(self, "toast", self).tower.get_input_embeddings()

    def set_input_embeddings(self, value):
        """The tower's."""
        getattr(self, "toast", self).tower.set_input_embeddings(value)

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
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            self.save_pretrained(folder)
            return api.upload_folder(repo_id=repo_id, folder_path=folder, **kwargs)


class ToastModel(ToastPreTrainedModel):
    """The encoder: pixel values to ``last_hidden_state`` and features as ``pooler_output``."""

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.base = BASES.get(config.head, transformers.AutoModel).from_config(copy.deepcopy(config.base))
        try:
            blocks = self.tower.get_submodule(config.blocks)
        except AttributeError as error:
            raise ValueError(
                f"The {type(self.tower).__name__} of this transformers has no block list {config.blocks!r}: the model "
                f"was saved with transformers {config.transformers_version}."
            ) from error
        sublayers = split_blocks(blocks, SublayerSplit(**config.parting)) if config.parting else blocks
        maps = {(span["start"], span["end"]): build_map(span["map"]) for span in config.spans}
        self.tower.set_submodule(config.blocks, shorten(sublayers, maps, config.block_outputs))
        if config.is_causal:
            shorten_config(self.tower.config, config.kept)  # a decoder looks up there how each of its blocks attends
            number_blocks(self.blocks)
        for name in config.without:
            setattr(self.tower, name, None)
        self.post_init()

    @property
    def tower(self):
        """The encoder in the base model."""
        return self.base.get_submodule(self.config.tower)

    @property
    def blocks(self):
        """The blocks and maps."""
        return self.tower.get_submodule(self.config.blocks)

    def forward(
        self,
        pixel_values=None,
        output_hidden_states=None,
        return_dict=None,
        *,
        input_ids=None,
        attention_mask=None,
        **kwargs,
    ):
        """Hidden states (batch, tokens, width) and features (batch, width).

        Of pixels (batch, 3, height, width), or of token ids and their mask (batch, tokens). ``output_hidden_states``
        adds the input of the first block and the output of every block and map, ``output_attentions`` the attentions.
        """
        if self.main_input_name == "input_ids":
            ids = pixel_values if input_ids is None else input_ids  # the first argument by its place
            mask = torch.ones_like(ids) if attention_mask is None else attention_mask
            kwargs |= {"input_ids": ids, "attention_mask": mask}
        else:
            kwargs, mask = {"pixel_values": pixel_values} | kwargs, None
        output, states = self.run(self.tower, mask, output_hidden_states, **kwargs)
        pooled = self._pool(output, mask)
        whole = BaseModelOutputWithPooling(output.last_hidden_state, pooled, states, output.get("attentions"))
        return whole if (self.config.return_dict if return_dict is None else return_dict) else whole.to_tuple()

    def run(self, module, mask, output_hidden_states, **kwargs):
        """Output of the tower, or of the base around it; and the hidden states before and after every block and map."""
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(padding_known(self.blocks, mask))
            if wanted:
                stack.enter_context(self.blocks[0].register_forward_pre_hook(lambda m, args: states.append(args[0])))
            for block in self.blocks if wanted else ():
                stack.enter_context(block.register_forward_hook(lambda m, args, out: states.append(out)))
            output = module(**kwargs)
        return output, tuple(h[0] if isinstance(h, tuple) else h for h in states) if wanted else None

    def _pool(self, output, mask):
        if self.config.features == "pooler":
            return output.pooler_output
        hidden = output.last_hidden_state
        if mask is not None:
            return pool_text(hidden, mask, self.config.features, self.config.special_tokens)
        tokens = hidden[:, 0] if self.config.features == "cls" else hidden[:, self.config.special_tokens :].mean(1)
        return self.tower.get_submodule(self.config.feature_norm)(tokens) if self.config.feature_norm else tokens


class ToastForImageClassification(ToastPreTrainedModel):
    """The encoder with a classifier: a linear layer on its features, or the base model's own."""

    opens = (None, "linear", "base")

    def __init__(self, config):
        super().__init__(config)
        self.toast = ToastModel(config)
        self.classifier = None if config.head in BASES else nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values, labels=None, output_hidden_states=None, return_dict=None, **kwargs):
        """Logits (batch, classes) of pixel values (batch, 3, height, width); with labels, their loss too.

        The loss is that of ``config.problem_type``. Hidden states and attentions as of the encoder.
        """
        return self.classify(labels, output_hidden_states, return_dict, pixel_values=pixel_values, **kwargs)

    def classify(self, labels, output_hidden_states, return_dict, **kwargs):
        """Logits and loss of images or texts."""
        if self.classifier is None:
            mask = kwargs.get("attention_mask")
            output, states = self.toast.run(self.toast.base, mask, output_hidden_states, **kwargs)
            logits = output.logits
        else:
            output = self.toast(output_hidden_states=output_hidden_states, return_dict=True, **kwargs)
            logits, states = self.classifier(output.pooler_output), output.hidden_states
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        whole = ImageClassifierOutput(loss, logits, states, output.get("attentions"))
        return whole if (self.config.return_dict if return_dict is None else return_dict) else whole.to_tuple()


class ToastForSequenceClassification(ToastForImageClassification):
    """The same for texts."""

    opens, opens_inputs = (None, "linear", "sequence"), "input_ids"

    def forward(
        self, input_ids, attention_mask=None, labels=None, output_hidden_states=None, return_dict=None, **kwargs
    ):
        """Logits (batch, classes) of token ids and their mask, both (batch, tokens); with labels, their loss too."""
        kwargs |= {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.classify(labels, output_hidden_states, return_dict, **kwargs)


class ToastForCausalLM(ToastPreTrainedModel, GenerationMixin):
    """A decoder with the head that predicts the next token: it writes texts, with a cache or without."""

    opens, opens_inputs = ("causal",), "input_ids"

    def __init__(self, config):
        super().__init__(config)
        self.toast = ToastModel(config)
        self.post_init()

    def get_output_embeddings(self):
        """The head."""
        return self.toast.base.get_output_embeddings()

    def prepare_inputs_for_generation(self, *args, **kwargs):
        """As the base model."""
        return self.toast.base.prepare_inputs_for_generation(*args, **kwargs)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        output_hidden_states=None,
        **kwargs,
    ):
        """What the base model returns: logits (batch, tokens, vocabulary), and the cache; with labels, the loss."""
        kwargs |= {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": past_key_values}
        if "position_ids" in inspect.signature(self.toast.base.forward).parameters:
            kwargs["position_ids"] = position_ids
        output, states = self.toast.run(self.toast.base, attention_mask, output_hidden_states, **kwargs)
        if states is not None:
            output["hidden_states"] = states
        return output


def register():
    """Register the type with the Auto classes; for code in a saved folder transformers does so itself."""
    transformers.AutoConfig.register(ToastConfig.model_type, ToastConfig, exist_ok=True)
    transformers.AutoModel.register(ToastConfig, ToastModel, exist_ok=True)
    transformers.AutoModelForImageClassification.register(ToastConfig, ToastForImageClassification, exist_ok=True)
    transformers.AutoModelForSequenceClassification.register(ToastConfig, ToastForSequenceClassification, exist_ok=True)
    transformers.AutoModelForCausalLM.register(ToastConfig, ToastForCausalLM, exist_ok=True)
