"""Take it away: an encoder as a folder that transformers opens, and such a folder as an encoder again."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from toastlib.data.transforms import image_size
from toastlib.errors import InputError
from toastlib.models.costs import flops, parameter_count
from toastlib.models.layers import describe_map
from toastlib.models.model_card import ModelCardData, Sizes, in_words, model_card
from toastlib.plan import Plan, Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from toastlib.models.encoder import Encoder
    from toastlib.models.modeling_toast import ToastConfig, ToastPreTrainedModel


class LinearHead(Protocol):
    """A classifier on the features that can be written as one layer, such as `Probe`."""

    def to_linear(self) -> nn.Linear:
        """The layer, from (images, width) to (images, classes)."""
        ...


Head = LinearHead | nn.Linear
"""A classifier trained on the features: a probe with one head, or its layer."""


def save_pretrained(
    encoder: Encoder,
    folder: str | Path,
    head: Head | PreTrainedModel | None = None,
    class_names: Sequence[str] | None = None,
    card: ModelCardData | None = None,
) -> None:
    """Write a folder that `AutoModel`, `AutoModelForImageClassification` and `pipeline` of transformers open.

    Parameters
    ----------
    encoder
        What `approximate` returned, or an original. The blocks that were removed are not in the file.
    folder
        Made if it is not there.
    head
        A classifier on top: a `Probe` with one head, a linear layer, or the original checkpoint as
        ``AutoModelForImageClassification`` loads it, whose own classifier is kept.
    class_names
        One for each class of a probe or a linear layer.
    card
        What goes into ``README.md`` beside what can be counted.

    Raises
    ------
    InputError
        If this encoder or head cannot be saved; nothing has been written then.
    """
    model = saved_form(encoder, head, class_names)
    spans = [Span(span["start"], span["end"]) for span in model.config.spans]
    maps = [in_words(span["map"]) for span in model.config.spans]
    classes = model.config.num_labels if model.config.head else 0
    counted = count(encoder, model)
    text = model_card(
        card or ModelCardData(), encoder.name, Plan(tuple(spans)), maps, counted, encoder.feature_kind, classes
    )
    model.companions = {"README.md": text}
    if encoder.preprocessing is not None:
        model.companions["preprocessor_config.json"] = json.dumps(encoder.preprocessing.to_config(), indent=2)
    model.save_pretrained(folder)


def saved_form(
    encoder: Encoder, head: Head | PreTrainedModel | None = None, class_names: Sequence[str] | None = None
) -> ToastPreTrainedModel:
    """The encoder as a transformers model, which shares its weights; parameters as for `save_pretrained`.

    It is built from its configuration alone, as every reader will, and refused unless its weights fit and it computes
    what the encoder computes.
    """
    from transformers import PreTrainedModel

    from toastlib.models.modeling_toast import ToastForImageClassification, ToastModel

    whole = head if isinstance(head, PreTrainedModel) else None
    layer = None if whole else linear_head(head, encoder, class_names)
    config = _config(encoder, whole, layer, class_names)
    with torch.device("meta"):
        model = (ToastForImageClassification if config.head else ToastModel)(config).eval()
    expected = _shapes(model)
    body = model if config.head is None else model.toast
    body.base = encoder.model if whole is None else with_tower(whole, config.tower, encoder.model)
    if layer is not None:
        model.classifier = layer
    model = model.to(encoder.device, encoder.dtype).requires_grad_(False)
    if different := expected.items() ^ _shapes(model).items():
        raise InputError(f"{encoder.name} is not what its configuration makes: {min(different)[0]} differs.")
    example = example_input(encoder)
    with torch.inference_mode():
        if not torch.equal(body(example).pooler_output, encoder(example)):
            raise InputError(f"{encoder.name} computes other features once it is saved: it cannot be saved.")
    return model


def count(encoder: Encoder, model: ToastPreTrainedModel) -> Sizes:
    """Parameters and FLOPs of the original and of the encoder's saved form, which are built without weights.

    Without weights torch counts the products inside the attention too, which it does not see on a CPU.
    """
    from toastlib.models.modeling_toast import ToastModel

    example = example_input(encoder).to("meta")
    parameters, operations = [], []
    for spans in ([], model.config.spans):
        config = copy.deepcopy(model.config)
        config.spans = spans
        with torch.device("meta"):
            built = type(encoder)(ToastModel(config).tower, config.blocks, encoder.feature_kind)
        parameters.append(parameter_count(built))
        operations.append(flops(built, example))
    head = parameter_count(model) - parameter_count(encoder)
    return Sizes((parameters[0] + head, parameters[1] + head), tuple(operations))


def example_input(encoder: Encoder) -> Tensor:
    """Noise of the size that the encoder's images have, shape (1, 3, height, width).

    Raises
    ------
    InputError
        If the encoder reads texts: the saved form does not know them yet.
    """
    if encoder.reads_text:
        raise InputError(
            f"{encoder.name} reads texts, and only encoders of images can be saved; a LanguageModel saves itself."
        )
    size = image_size(encoder.preprocessing, encoder.model.config)
    noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(encoder.device, encoder.dtype)


def _config(
    encoder: Encoder, whole: PreTrainedModel | None, layer: nn.Linear | None, class_names: Sequence[str] | None
) -> ToastConfig:
    """What the saved form is built from."""
    from toastlib.models.modeling_toast import ToastConfig

    base, tower, skeleton = _skeleton(encoder, whole)
    block_count = len(skeleton.get_submodule(encoder.blocks_path))
    spans = _spans(encoder, block_count if encoder.sublayer_split is None else 2 * block_count)
    try:
        maps = {span: describe_map(module) for span, module in spans.items()}
    except ValueError as error:
        raise InputError(str(error)) from error
    labels = {}
    if layer is not None:
        names = class_names or [f"LABEL_{index}" for index in range(layer.out_features)]
        labels["id2label"] = dict(enumerate(map(str, names)))
    elif whole is not None:
        labels["id2label"] = whole.config.id2label
    if labels:
        labels["label2id"] = {label: index for index, label in labels["id2label"].items()}
    return ToastConfig(
        base=base,
        tower=tower,
        blocks=encoder.blocks_path,
        parting=encoder.sublayer_split and asdict(encoder.sublayer_split),
        without=[part for part, _ in skeleton.named_children() if getattr(encoder.model, part, None) is None],
        spans=[{"start": span.start, "end": span.end, "map": maps[span]} for span in spans],
        features=encoder.feature_kind,
        special_tokens=encoder.special_tokens,
        feature_norm=_feature_norm(encoder),
        head="base" if whole is not None else "linear" if layer is not None else None,
        hidden_size=encoder.width if layer is None else layer.in_features,
        **labels,
    )


def _skeleton(encoder: Encoder, whole: PreTrainedModel | None) -> tuple[Any, str, nn.Module]:
    """The base model's configuration, where the encoder lies in it, and the encoder as it was, without weights."""
    from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel

    if not isinstance(encoder.model, PreTrainedModel):
        raise InputError(f"{encoder.name} is no transformers model, and only these can be saved.")
    model = encoder.model if whole is None else whole
    config = copy.deepcopy(model.config)
    config._name_or_path, config.dtype = "", encoder.dtype
    auto = AutoModel if whole is None else AutoModelForImageClassification
    try:
        with torch.device("meta"):
            skeleton = auto.from_config(config)
    except ValueError:  # the Auto class does not know the configuration
        skeleton = None
    if type(skeleton) is not type(model):
        raise InputError(f"A {type(model).__name__} cannot be saved: {auto.__name__} does not open its configuration.")
    towers = [name for name, module in skeleton.named_modules() if type(module) is type(encoder.model)]
    if not towers:
        raise InputError(f"The classifier of a {type(model).__name__} is not for a {type(encoder.model).__name__}.")
    return config, towers[0], skeleton.get_submodule(towers[0])


def _spans(encoder: Encoder, block_count: int) -> dict[Span, nn.Module]:
    """The maps in the encoder's block list, by spans of the original's blocks."""
    spans, last = {}, -1
    for block in encoder.blocks:
        if not hasattr(block, "translation"):
            last += 1
            continue
        span = Span(*block.span)
        if span.start != last:
            break
        spans[span], last = block.translation, span.end
    if last != block_count - 1:
        raise InputError(
            f"{encoder.name} was made smaller in several steps: make it from the original with all spans in one plan."
        )
    return spans


def linear_head(head: Head | None, encoder: Encoder, class_names: Sequence[str] | None) -> nn.Linear | None:
    """The classifier as a layer of its own."""
    if head is None:
        return None
    head = head.to_linear() if hasattr(head, "to_linear") else head
    if not isinstance(head, nn.Linear):
        raise InputError(
            f"A head is a Probe, a linear layer or a transformers classifier, not a {type(head).__name__}."
        )
    weight = head.weight
    bias = weight.new_zeros(len(weight)) if head.bias is None else head.bias
    if class_names is not None and len(class_names) != len(weight):
        raise InputError(f"There are {len(class_names)} class names for {len(weight)} classes.")
    if weight.shape[1] != encoder.width:
        raise InputError(
            f"The head is for features of {weight.shape[1]} values, and {encoder.name} has {encoder.width}."
        )
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    return layer


def with_tower(whole: nn.Module, path: str, tower: nn.Module) -> nn.Module:
    """A copy of the model with another tower, which is not copied; the model given stays as it is."""
    parent, _, attribute = path.rpartition(".")
    if parent:
        raise InputError(f"The encoder of a {type(whole).__name__} lies too deep in it for its classifier to be kept.")
    changed = copy.copy(whole)
    changed._modules = {
        name: tower if name == attribute else copy.deepcopy(part) for name, part in whole._modules.items()
    }
    return changed


def _feature_norm(encoder: Encoder) -> str | None:
    """CLIP's tower returns the last block's output as it is; `Encoder` then norms the features."""
    if encoder.feature_kind == "pooler" or not hasattr(encoder.model, "post_layernorm"):
        return None
    last = []
    handle = encoder.blocks[-1].register_forward_hook(lambda module, args, output: last.append(output))
    try:
        with torch.inference_mode():
            hidden = encoder.model(example_input(encoder)).last_hidden_state
    finally:
        handle.remove()
    return "post_layernorm" if hidden is last[0] else None


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
