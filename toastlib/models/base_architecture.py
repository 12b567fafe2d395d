"""Transformers' own classes around an encoder: a checkpoint's classifier, and models of the base architecture."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from toastlib.data import catalog
from toastlib.errors import InputError
from toastlib.models.costs import example_input
from toastlib.models.layers import layer_lists, number_blocks, shorten_config
from toastlib.models.quiet import find_checkpoint, quiet_transformers
from toastlib.models.structure import set_image_size

if TYPE_CHECKING:
    from toastlib.models.encoder import Encoder

TASKS = ("ForImageClassification", "ForSequenceClassification")
SPELLINGS = (str, str.casefold, lambda name: re.sub(r"[\s_/-]+", "", name.casefold()))
"""Names are compared as they are; else without case; else without spaces, ``_``, ``-`` and ``/`` too."""


def own_classifier(
    name: str, image_size: int | None = None, trust_remote_code: bool = False, *, whole_or_none: bool = False
) -> PreTrainedModel | None:
    """The classifier of a checkpoint, or `None` if it has none; the arguments are as for `load_encoder`.

    An `InputError` if its weights are missing or of another shape; with `whole_or_none` it is `None` then too.
    """
    path = find_checkpoint(name)
    where = catalog.at_revision(path) | {"trust_remote_code": trust_remote_code}
    (kind, *_) = [*(transformers.AutoConfig.from_pretrained(**where).architectures or []), ""]
    task = next((task for task in TASKS if task in kind), None)
    if task is None or kind.startswith("Toast"):
        return None
    with catalog.loading("model", path), quiet_transformers():
        settings = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True} | where
        settings["ignore_mismatched_sizes"] = True  # refused below
        model, info = getattr(transformers, f"AutoModel{task}").from_pretrained(**settings)
    if wrong := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
        if whole_or_none:
            return None
        raise InputError(f"The classifier of {path} lacks weights, or has others: {wrong[0]}. --head new trains one.")
    model.eval()
    if image_size:
        set_image_size(getattr(model, "vision_model", model.base_model), image_size)
    return model


def match_labels(config: PretrainedConfig, names: Iterable[str]) -> list[int | None]:
    """The index of the label that each name stands for, or `None` where none fits, or more than one.

    A label is known by itself, by its other names in ``label2id``, and by each of its names between commas, as in
    ImageNet's ``"tench, Tinca tinca"``. A label that two names stand for fits neither.
    """
    known = [(label, index) for index, label in config.id2label.items()]
    known += [(label, index) for label, index in config.label2id.items() if index in config.id2label]
    known += [(part, index) for label, index in known for part in label.split(", ") if part != label]
    tables = []
    for spell in SPELLINGS:
        table: dict[str, set[int]] = defaultdict(set)
        for label, index in known:
            table[spell(label)].add(index)
        tables.append((spell, table))
    found: list[int | None] = []
    for name in names:
        candidates = next((table[spell(name)] for spell, table in tables if spell(name) in table), set())
        found.append(min(candidates) if len(candidates) == 1 else None)
    return [index if found.count(index) == 1 else None for index in found]


def plain_form(encoder: Encoder, head: Any = None, class_names: Sequence[str] | None = None) -> PreTrainedModel:
    """The encoder as the Auto classes build it, sharing its weights; parameters as for `save_pretrained`."""
    config = base_config(encoder, encoder.model)
    config.architectures = []
    if head is None:
        if type(skeleton(AutoModel, config)) is not type(encoder.model):
            raise InputError(f"AutoModel does not open the configuration of a {type(encoder.model).__name__}.")
        model = copy.copy(encoder.model)
        model.config = config
        return model
    if isinstance(head, PreTrainedModel):
        return _around(encoder, head)
    layer = linear_head(head, encoder, class_names)
    config.update(labels_of(layer, class_names))
    model = _around(encoder, _classifier_of(encoder, config, layer))
    example = example_input(encoder)
    with torch.inference_mode():
        expected = layer.to(encoder.device, encoder.dtype)(encoder(example))
        if not torch.allclose(model(example).logits, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
            raise _unreadable(model, encoder)
    return model


def _around(encoder: Encoder, whole: PreTrainedModel) -> PreTrainedModel:
    """A classifier with the encoder in place of its own."""
    path = tower_path(whole, encoder)
    tower, built = copy.copy(encoder.model), whole.get_submodule(path)
    tower._modules = {  # a classifier may be built without parts that the encoder has, such as a pooler
        name: None if getattr(built, name, None) is None else part for name, part in tower._modules.items()
    }
    model = with_tower(whole, path, tower)
    model.config = base_config(encoder, whole)
    parts = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    tower_config = next(part for part in parts if type(part) is type(encoder.model.config))
    blocks = range(len(encoder.blocks) + len(encoder.plan.removed))
    shorten_config(tower_config, [block for block in blocks if block not in encoder.plan.removed])
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise _unreadable(model, encoder)
    return model.eval().to(encoder.device, encoder.dtype).requires_grad_(False)


def base_config(encoder: Encoder, model: nn.Module) -> Any:
    """A copy of a transformers model's configuration, with the encoder's dtype and without a path."""
    if not isinstance(encoder.model, PreTrainedModel):
        raise InputError(f"{encoder.name} is no transformers model, and only these can be saved.")
    config, original = copy.deepcopy(model.config), encoder.original_config
    if type(original) is type(config):
        for name in ("num_hidden_layers", *layer_lists(original)):
            setattr(config, name, getattr(original, name))
    config._name_or_path, config.dtype = "", encoder.dtype
    return config


def renumber(encoder: Encoder, kept: Sequence[int]) -> None:
    """Let configuration and cache of a decoder follow its block list: each stands where a block of `kept` was."""
    encoder.last_split = None  # what was found about another last block
    if encoder.is_causal:  # some run as many blocks as this counts, and look up here how each of them attends
        config = encoder.model.config
        encoder.original_config = encoder.original_config or copy.deepcopy(config)
        shorten_config(config, kept)
        number_blocks(encoder.blocks)


def skeleton(auto: Any, config: Any) -> PreTrainedModel | None:
    """The model that an Auto class builds from a configuration, without weights; `None` if it does not know it."""
    try:
        with torch.device("meta"):
            return auto.from_config(config)
    except ValueError:
        return None


def tower_path(whole: nn.Module, encoder: Encoder) -> str:
    """The name of the encoder in a model with a classifier."""
    towers = [name for name, module in whole.named_modules() if type(module) is type(encoder.model)]
    if not towers:
        raise InputError(f"The classifier of a {type(whole).__name__} is not for a {type(encoder.model).__name__}.")
    return towers[0]


def labels_of(layer: nn.Linear, class_names: Sequence[str] | None) -> dict[str, dict]:
    """The class names of a linear head, as a configuration has them: ``id2label`` and ``label2id``."""
    names = [str(name) for name in class_names or [f"LABEL_{index}" for index in range(layer.out_features)]]
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def linear_head(head: Any, encoder: Encoder, class_names: Sequence[str] | None) -> nn.Linear | None:
    """The classifier as a layer of its own, with a bias."""
    if head is None:
        return None
    head = head.to_linear() if hasattr(head, "to_linear") else head
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"A head is a Probe, a linear layer or a transformers classifier, not a {type(head).__name__}."
        )
    classes, width = head.weight.shape
    if class_names is not None and len(class_names) != classes:
        raise InputError(f"There are {len(class_names)} class names for {classes} classes.")
    if width != encoder.width:
        raise InputError(f"The head is for features of {width} values, and {encoder.name} has {encoder.width}.")
    return _layer_of(head.weight, head.bias)


def with_tower(whole: nn.Module, path: str, tower: nn.Module) -> nn.Module:
    """A copy of the model with another tower, which is not copied; the given model stays as it is."""
    parent, _, attribute = path.rpartition(".")
    if parent:
        raise InputError(f"The encoder of a {type(whole).__name__} lies too deep in it for its classifier to be kept.")
    changed = copy.copy(whole)
    changed._modules = {
        name: tower if name == attribute else copy.deepcopy(part) for name, part in whole._modules.items()
    }
    changed.tie_weights()  # a head that is the embedding is that of the new tower
    return changed


def _layer_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(weight.new_zeros(len(weight)) if bias is None else bias)
    return layer


def _classifier_of(encoder: Encoder, config: Any, layer: nn.Linear) -> PreTrainedModel:
    """The architecture's own classifier class with a linear layer on the features, its encoder without weights."""
    whole = skeleton(transformers.AutoModelForImageClassification, config)
    classifier = getattr(whole, "classifier", None)
    has_tower = whole and any(type(module) is type(encoder.model) for module in whole.children())
    if not has_tower or not isinstance(classifier, nn.Linear) or classifier.in_features < encoder.width:
        raise _unreadable(whole, encoder)
    # DINOv2's classifier reads the mean of the patches too, behind the CLS token: with weight zero.
    rest = layer.weight.new_zeros(layer.out_features, classifier.in_features - encoder.width)
    whole.classifier = _layer_of(torch.cat([layer.weight, rest], dim=1), layer.bias)
    return whole


def _unreadable(model: Any, encoder: Encoder) -> InputError:
    kind = "transformers" if model is None else f"a {type(model).__name__}"
    return InputError(
        f"No classifier of {kind} reads the {encoder.feature_kind!r} features of {encoder.name}: save the encoder "
        "alone, or take another translator than the fused one."
    )
