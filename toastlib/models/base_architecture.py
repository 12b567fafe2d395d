"""A smaller encoder of the base architecture as a folder for plain transformers: no toastlib, no remote code."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from toastlib.errors import InputError
from toastlib.models.costs import flops, parameter_count
from toastlib.models.encoder import Encoder
from toastlib.models.model_card import ModelCardData, Sizes, model_card
from toastlib.models.saving import Head, example_input, linear_head, with_tower
from toastlib.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_plain(
    encoder: Encoder,
    folder: str | Path,
    plan: Plan,
    original: tuple[int, int],
    head: "Head | PreTrainedModel | None" = None,
    class_names: Sequence[str] | None = None,
    card: ModelCardData | None = None,
) -> None:
    """Write the base architecture with the blocks that the encoder has.

    Parameters
    ----------
    encoder
        A transformers model whose configuration counts the blocks that are there.
    folder
        Made if it is not there.
    plan, original
        For the card: what was folded away, and the original's parameters and FLOPs.
    head, class_names, card
        As for `save_pretrained`. A head must fit the architecture's own classifier.

    Raises
    ------
    InputError
        If transformers' classes would compute anything else; nothing has been written then.
    """
    model = plain_form(encoder, head, class_names)
    classes = 0 if head is None else model.config.num_labels
    beside = parameter_count(model) - parameter_count(encoder)
    counted = Sizes(
        (original[0] + beside, parameter_count(model)), (original[1], flops(encoder, example_input(encoder)))
    )
    maps = [f"a map folded into the MLP of block {span.start}" for span in plan]
    text = model_card(
        card or ModelCardData(), encoder.name, plan, maps, counted, encoder.feature_kind, classes, plain=True
    )
    files = {"README.md": text}
    if encoder.preprocessing is not None:
        files["preprocessor_config.json"] = json.dumps(encoder.preprocessing.to_config(), indent=2)
    model.save_pretrained(folder)
    for name, content in files.items():
        (Path(folder) / name).write_text(content, encoding="utf-8")


def plain_form(
    encoder: Encoder, head: "Head | PreTrainedModel | None" = None, class_names: Sequence[str] | None = None
) -> "PreTrainedModel":
    """The encoder as the Auto classes build it, which shares its weights; parameters and errors as for `save_plain`."""
    from transformers import AutoModel, PreTrainedModel

    if not isinstance(encoder.model, PreTrainedModel):
        raise InputError(f"{encoder.name} is no transformers model, and only these can be saved.")
    config = copy.deepcopy(encoder.model.config)
    config._name_or_path, config.dtype, config.architectures = "", encoder.dtype, []
    if head is None:
        if type(_blank(AutoModel, config)) is not type(encoder.model):
            raise InputError(f"AutoModel does not open the configuration of a {type(encoder.model).__name__}.")
        model = copy.copy(encoder.model)
        model.config = config
        return model
    if isinstance(head, PreTrainedModel):
        model = _with_own_classifier(encoder, head)
        return model.to(encoder.device, encoder.dtype).requires_grad_(False)
    layer = linear_head(head, encoder, class_names)
    names = class_names or [f"LABEL_{index}" for index in range(layer.out_features)]
    config.id2label = dict(enumerate(map(str, names)))
    config.label2id = {label: index for index, label in config.id2label.items()}
    model = _with_layer(encoder, config, layer).to(encoder.device, encoder.dtype).requires_grad_(False)
    example = example_input(encoder)
    with torch.inference_mode():
        expected = layer.to(encoder.device, encoder.dtype)(encoder(example))
        if not _close(model(example).logits, expected):
            raise _other_features(model, encoder)
    return model


def shorten_config(config: Any, blocks: int) -> None:
    """Let a configuration count so many blocks, in everything that it derives from their number."""
    config.num_hidden_layers = blocks
    if hasattr(config, "stage_names"):  # of a backbone
        config.stage_names = config.stage_names[: blocks + 1]
        config.set_output_features_output_indices(out_indices=None, out_features=None)


def _with_layer(encoder: Encoder, config: Any, layer: nn.Linear) -> "PreTrainedModel":
    """The architecture's own classifier class with a linear layer on the features."""
    from transformers import AutoModelForImageClassification

    skeleton = _blank(AutoModelForImageClassification, config)
    if skeleton is None:
        raise _other_features(skeleton, encoder)
    classifier = getattr(skeleton, "classifier", None)
    towers = [name for name, module in skeleton.named_children() if type(module) is type(encoder.model)]
    if not towers or not isinstance(classifier, nn.Linear) or classifier.in_features < encoder.width:
        raise _other_features(skeleton, encoder)
    # DINOv2's classifier reads the mean of the patches too, behind the CLS token: with weight zero.
    rest = layer.weight.new_zeros(layer.out_features, classifier.in_features - encoder.width)
    wide = nn.utils.skip_init(nn.Linear, classifier.in_features, layer.out_features)
    wide.weight.data = torch.cat([layer.weight.data, rest], dim=1)
    wide.bias.data = layer.bias.data.clone()
    tower = _like(encoder.model, skeleton.get_submodule(towers[0]))
    skeleton._modules |= {towers[0]: tower, "classifier": wide}
    if any(tensor.is_meta for tensor in skeleton.state_dict().values()):
        raise _other_features(skeleton, encoder)
    return skeleton.eval()


def _with_own_classifier(encoder: Encoder, whole: "PreTrainedModel") -> "PreTrainedModel":
    """The checkpoint's classifier on the encoder."""
    towers = [name for name, module in whole.named_modules() if type(module) is type(encoder.model)]
    if not towers:
        raise InputError(f"The classifier of a {type(whole).__name__} is not for a {type(encoder.model).__name__}.")
    model = with_tower(whole, towers[0], _like(encoder.model, whole.get_submodule(towers[0])))
    model.config = copy.deepcopy(whole.config)
    model.config._name_or_path, model.config.dtype = "", encoder.dtype
    parts = [model.config, *(getattr(model.config, name) for name in model.config.sub_configs)]
    own = next(part for part in parts if type(part) is type(encoder.model.config))
    shorten_config(own, len(encoder.blocks))
    return model


def _like(tower: nn.Module, built: nn.Module) -> nn.Module:
    """The encoder without the parts that it has not as part of a classifier, such as a pooler."""
    alike = copy.copy(tower)
    alike._modules = {
        name: None if getattr(built, name, None) is None else part for name, part in tower._modules.items()
    }
    return alike


def _blank(auto: Any, config: Any) -> "PreTrainedModel | None":
    """What an Auto class builds from a configuration, without weights; `None` if it does not know it."""
    try:
        with torch.device("meta"):
            return auto.from_config(config)
    except ValueError:
        return None


def _close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def _other_features(model: Any, encoder: Encoder) -> InputError:
    kind = "transformers" if model is None else f"a {type(model).__name__}"
    return InputError(
        f"No classifier of {kind} reads the {encoder.feature_kind!r} features of {encoder.name}: save the encoder "
        "alone, or take another translator than the folded one."
    )
